// What can be asked of a device without touching it, and the checks that precede every launch.
//
// The counterpart of cpu/isa.h.
#pragma once

#include "cuda/stages.h"

#include <string>

namespace koopcore::cuda {

int device_count();           // 0 without a driver
std::string device_problem(); // why that is so, or nothing

// What launches need to know; throws if this module has no code for the device.
const Device &device_of(int number);
int architecture(int number); // 90 for compute capability 9.0

// Throws std::invalid_argument if the stream is of another device.
void check_stream(int device, Stream stream);

// Whether fp64 runs at half the rate of fp32 or more, and not at a 64th (see warp.h).
bool fast_double(int number);

// Error of a Gram matrix on this device in units of fp64 sums (see sums.h).
double gram_noise(int number, int n, bool is_double);

} // namespace koopcore::cuda
