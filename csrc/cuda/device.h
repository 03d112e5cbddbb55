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
// Throws std::invalid_argument if the stream is of another device.
void check_stream(int device, Stream stream);

// Error of a Gram matrix on this device in units of fp64 sums (see sums.h).
double gram_noise(const Device &device, int n, bool is_double);

} // namespace koopcore::cuda
