// Which group of which warp of which cluster runs next, and what happens when none can.
#pragma once

#include "state.h"

namespace glm5::emulator {

// Runs a grid to its end. Throws Fault.
void run_grid(Grid& grid);

// The lanes leave the kernel: for exit, and ret in the kernel itself.
void end_lanes(Warp& warp, u32 lanes);

// After a thread has exited or arrived: completes the named barriers and the cluster barrier that wait for nobody else.
void settle_barriers(Cta& cta);
void settle_cluster_barrier(Cluster& cluster);

}  // namespace glm5::emulator
