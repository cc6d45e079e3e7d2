// Clusters that are on the device at a time: their creation, their turns and their end.
#pragma once

#include "state.h"

namespace glm5::emulator {

// Runs a cluster for about `budget` instructions; true once it has ended. scheduler.cpp
bool run_cluster(Cluster& cluster, u64 budget);

}  // namespace glm5::emulator
