// The table of kernels of one instruction set; compiled once per instruction set.
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace koopcore::cpu::KOOPCORE_ISA {

const Kernels kernels = {
    kLanes,
    gram_entries,
    gram_map,
    gram_scratch,
    gram_piece,
    gram_lanes,
    interleave,
    separate,
    solve_scratch,
    solve_batch,
    rollout_scratch,
    rollout_batch,
    combine_scratch,
    combine_pieces,
    moments_scratch,
    moments_batch,
    project_scratch,
    project_batch,
    rollout_dense_scratch,
    rollout_dense_batch,
    feature_fit_scratch,
    feature_fit_batch,
    feature_endpoint_scratch,
    feature_endpoint_batch,
    gather_groups,
    scatter_groups,
};

} // namespace koopcore::cpu::KOOPCORE_ISA
