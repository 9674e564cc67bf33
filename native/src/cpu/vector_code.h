// Marks a function whose loops are worth a second compilation for wider vectors, chosen when the program starts. The
// numbers are the same by construction: no operation of the loops depends on the vectors' width.
#pragma once

#include <cstdint>  // and with it __GLIBC__: choosing at the start needs its loader

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define LAYERCAST_VECTOR_CODE __attribute__((target_clones("avx2", "default"), flatten))
#else
#define LAYERCAST_VECTOR_CODE
#endif
