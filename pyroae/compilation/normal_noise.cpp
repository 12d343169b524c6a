// Standard normal noise of torch's CPU generator, by vectors: normal_noise.py describes it.
#include <cstring>
#include <initializer_list>

namespace normal_noise {

constexpr int64_t SIZE = VECTOR_FLOATS;
constexpr int64_t STATE = 624, SHIFT = 397;  // of the Mersenne twister
constexpr int64_t GROUP = 16;                // numbers that torch makes at once, in two halves
constexpr int64_t HALF = GROUP / 2, GROUPS = 16;

typedef float Vector __attribute__((vector_size(SIZE * 4), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(SIZE * 4), aligned(4), may_alias));

inline Bits load(const uint32_t* at) { return *reinterpret_cast<const Bits*>(at); }

template <typename Word>
inline Word twisted(Word high, Word low, Word far) {
  const Word mixed = (high & 0x80000000u) | (low & 0x7fffffffu);
  return far ^ (mixed >> 1) ^ ((0u - (low & 1u)) & 0x9908b0dfu);
}

struct Generator {
  uint32_t state[STATE];
  float uniform[STATE];
  int64_t next = STATE;

  explicit Generator(uint64_t seed) {
    state[0] = static_cast<uint32_t>(seed);
    for (int64_t i = 1; i < STATE; ++i) {
      state[i] = 1812433253u * (state[i - 1] ^ (state[i - 1] >> 30)) + static_cast<uint32_t>(i);
    }
  }

  // The words from `first` to `last`, which depend on words `SHIFT` after them.
  void twist(int64_t first, int64_t last, int64_t shift) {
    int64_t i = first;
    for (; i + SIZE <= last; i += SIZE) {
      *reinterpret_cast<Bits*>(state + i) =
          twisted(load(state + i), load(state + i + 1), load(state + i + shift));
    }
    for (; i < last; ++i) state[i] = twisted(state[i], state[i + 1], state[i + shift]);
  }

  void refill() {
    twist(0, STATE - SHIFT, SHIFT);
    twist(STATE - SHIFT, STATE - 1, SHIFT - STATE);
    state[STATE - 1] = twisted(state[STATE - 1], state[0], state[SHIFT - 1]);
    for (int64_t i = 0; i < STATE; i += SIZE) {
      Bits word = load(state + i);
      word ^= word >> 11;
      word ^= (word << 7) & 0x9d2c5680u;
      word ^= (word << 15) & 0xefc60000u;
      word ^= word >> 18;
      typedef int32_t Signed __attribute__((vector_size(SIZE * 4)));
      *reinterpret_cast<Vector*>(uniform + i) =
          __builtin_convertvector((Signed)(word & 0xffffffu), Vector) * 0x1p-24f;
    }
    next = 0;
  }

  void fill(float* target, int64_t count) {
    while (count > 0) {
      if (next == STATE) refill();
      const int64_t part = count < STATE - next ? count : STATE - next;
      std::memcpy(target, uniform + next, part * sizeof(float));
      next += part;
      target += part;
      count -= part;
    }
  }
};

// log(x), 2⁻²⁴ ≤ x ≤ 1: x = 2ᵉ m with m from √½ to √2, and a polynomial of m − 1.
inline Vector log(Vector x) {
  typedef int32_t Signed __attribute__((vector_size(SIZE * 4)));
  const Bits shifted = (Bits)x - 0x3f3504f3u;
  const Vector exponent = __builtin_convertvector((Signed)shifted >> 23, Vector);
  const Vector m = (Vector)((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  Vector p = m * 7.0376836292e-2f - 1.1514610310e-1f;
  for (const float c : {1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f, -1.6668057665e-1f,
                        2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f}) {
    p = p * m + c;
  }
  const Vector square = m * m;
  return (p * m * square - exponent * 2.12194440e-4f) - 0.5f * square + m +
         exponent * 0.693359375f;
}

// √x, x ≥ 0
inline Vector root(Vector x) {
#if defined(__AVX512F__)
  return (Vector)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX__)
  return (Vector)_mm256_sqrt_ps((__m256)x);
#else
  Vector result;
  for (int64_t i = 0; i < SIZE; ++i) result[i] = __builtin_sqrtf(x[i]);
  return result;
#endif
}

// r cos 2πu and r sin 2πu, 0 ≤ u < 1: the angle is 2π (u − q/4), at most π/4, after q quarters.
inline void turn(Vector radius, Vector u, Vector& cosine, Vector& sine) {
  typedef int32_t Signed __attribute__((vector_size(SIZE * 4)));
  const Signed quarter = __builtin_convertvector(u * 4.0f + 0.5f, Signed);
  const Vector angle = (u * 4.0f - __builtin_convertvector(quarter, Vector)) * 1.57079632679f;
  const Vector square = angle * angle;
  const Vector s = ((square * -1.9515295891e-4f + 8.3321608736e-3f) * square - 1.6666654611e-1f) *
                       square * angle + angle;
  const Vector c = ((square * 2.443315711809948e-5f - 1.388731625493765e-3f) * square +
                    4.166664568298827e-2f) * square * square - 0.5f * square + 1.0f;
  const auto is_odd = (quarter & 1) != 0;
  const Vector first = is_odd ? s : c, second = is_odd ? c : s;
  const auto turns_first = ((quarter + 1) & 2) != 0;
  const auto turns_second = (quarter & 2) != 0;
  cosine = radius * (turns_first ? -first : first);
  sine = radius * (turns_second ? -second : second);
}

// Uniform numbers in place: each of the first half of a group with one of the second.
inline void transform(float* data, int64_t groups) {
  float first[GROUPS * HALF] = {}, second[GROUPS * HALF] = {};
  for (int64_t g = 0; g < groups; ++g) {
    std::memcpy(first + g * HALF, data + g * GROUP, HALF * sizeof(float));
    std::memcpy(second + g * HALF, data + g * GROUP + HALF, HALF * sizeof(float));
  }
  for (int64_t i = 0; i < groups * HALF; i += SIZE) {
    auto& one = *reinterpret_cast<Vector*>(first + i);
    auto& other = *reinterpret_cast<Vector*>(second + i);
    turn(root(-2.0f * log(1.0f - one)), other, one, other);
  }
  for (int64_t g = 0; g < groups; ++g) {
    std::memcpy(data + g * GROUP, first + g * HALF, HALF * sizeof(float));
    std::memcpy(data + g * GROUP + HALF, second + g * HALF, HALF * sizeof(float));
  }
}

void fill(Generator& generator, float* data, int64_t count) {
  generator.fill(data, count);
  const int64_t whole = count / GROUP;
  for (int64_t g = 0; g < whole; g += GROUPS) {
    transform(data + g * GROUP, whole - g < GROUPS ? whole - g : GROUPS);
  }
  if (count % GROUP != 0) {  // the last group is drawn again
    generator.fill(data + count - GROUP, GROUP);
    transform(data + count - GROUP, 1);
  }
}

}  // namespace normal_noise

extern "C" void normal_noise_fill(uint64_t seed, float* const* tensors, const int64_t* counts,
                                  int64_t number) {
  normal_noise::Generator generator(seed);
  for (int64_t i = 0; i < number; ++i) normal_noise::fill(generator, tensors[i], counts[i]);
}
