// A layer program -> finished bytes in one half of an arena. The straight line of the native core.
#pragma once

#include "arena.h"
#include "layer_program.h"
#include "thread_pool.h"

namespace layercast {

/// Called on a thread of the pool. Whatever it ends with, nothing of it writes to the arena any more when it returns.
LayerReport run_layer(ThreadPool& pool, Arena& arena, Half half, const LayerProgram& program,
                      const CancelToken& cancel);

}  // namespace layercast
