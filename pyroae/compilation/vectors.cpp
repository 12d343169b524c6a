// The vectors of the processor, for all kernels: step_loop.py puts this code before theirs.
#include <cstdint>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int64_t VECTOR_FLOATS = 16;  // numbers of single precision in a vector
#elif defined(__AVX__)
constexpr int64_t VECTOR_FLOATS = 8;
#else
constexpr int64_t VECTOR_FLOATS = 4;
#endif

