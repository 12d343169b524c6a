// log Bernoulli(x | b + W h) summed over pixels, for rows h: bernoulli_rows.py describes it.
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

namespace bernoulli_rows {

constexpr int64_t SIZE = VECTOR_FLOATS;
constexpr int64_t ROWS = 64;     // of a block, whose layers stay in the cache of a core
constexpr int64_t FACTORS = 96;  // of a product, each from 1 to 2

typedef float Vector __attribute__((vector_size(SIZE * 4), aligned(4), may_alias));
typedef int32_t Bits __attribute__((vector_size(SIZE * 4), aligned(4), may_alias));

// C = A B of a BLAS, which stores columns; 64-bit sizes are read as 32-bit ones too.
using Product = void (*)(const char*, const char*, const int64_t*, const int64_t*, const int64_t*,
                         const float*, const float*, const int64_t*, const float*, const int64_t*,
                         const float*, float*, const int64_t*);

enum Activation : int64_t { NONE, TANH, RELU };

struct Layer {
  const float *weight, *bias;
  int64_t inputs, outputs, width, activation;  // width: outputs and padding, whose logits are −100
};

struct Arguments {
  Product product;
  const Layer* layers;
  const float* data;
  int64_t num_layers, num_data, rows;
};

inline Vector all(float value) { return Vector{} + value; }

inline Vector polynomial(Vector x, std::initializer_list<float> coefficients) {
  Vector total = all(*coefficients.begin());
  for (auto c = coefficients.begin() + 1; c != coefficients.end(); ++c) total = total * x + *c;
  return total;
}

// The smaller and the larger value, or the second one if it is not a number.
inline Vector smaller(Vector limit, Vector x) {
#if defined(__AVX512F__)
  return (Vector)_mm512_min_ps((__m512)limit, (__m512)x);
#else
  return limit < x ? limit : x;
#endif
}

inline Vector larger(Vector limit, Vector x) {
#if defined(__AVX512F__)
  return (Vector)_mm512_max_ps((__m512)limit, (__m512)x);
#else
  return limit > x ? limit : x;
#endif
}

inline Vector divided(Vector above, Vector below) {
#if defined(__AVX512F__)
  // Division takes 16 cycles; one Newton step from 14 bits gives single precision.
  const __m512 value = (__m512)below, inverse = _mm512_rcp14_ps(value);
  const __m512 error = _mm512_fnmadd_ps(value, inverse, _mm512_set1_ps(2.0f));
  return above * (Vector)_mm512_mul_ps(inverse, error);
#else
  return above / below;
#endif
}

// The quotient of cpu_rewrites.py.
inline Vector tanh(Vector x) {
  const Vector limit = all(7.90531110763549805f);
  x = larger(-limit, smaller(limit, x));
  const Vector square = x * x;
  return divided(
      x * polynomial(square, {-2.76076847742355e-16f, 2.00018790482477e-13f,
                              -8.60467152213735e-11f, 5.12229709037114e-08f,
                              1.48572235717979e-05f, 6.37261928875436e-04f, 4.89352455891786e-03f}),
      polynomial(square, {1.19825839466702e-06f, 1.18534705686654e-04f, 2.26843463243900e-03f,
                          4.89352518554385e-03f}));
}

// exp(−y), y ≥ 0, with an error of 2.3 · 10⁻⁷ of 1 + exp(−y): a polynomial of exp(−y / 8), squared
// thrice. From 17.5 on 1 + exp(−y) rounds to 1.
inline Vector decay(Vector y) {
  Vector e = polynomial(-smaller(all(17.5f), y), {3.32035244e-09f, 2.3657617e-07f, 1.00966872e-05f, 0.000325366767f,
                             0.00781236636f, 0.124999963f, 1.0f});
  for (int i = 0; i < 3; ++i) e *= e;
  return e;
}

template <typename Function>
inline void activate(float* row, const Layer& layer, Function function) {
  for (int64_t i = 0; i < layer.width; i += SIZE) {
    auto& values = *reinterpret_cast<Vector*>(row + i);
    values = function(values + *reinterpret_cast<const Vector*>(layer.bias + i));
  }
}

inline void activate(float* row, const Layer& layer) {
  if (layer.activation == TANH) return activate(row, layer, [](Vector v) { return tanh(v); });
  activate(row, layer, [](Vector v) { return larger(all(0.0f), v); });
}

// All elements of a vector combined, in pairs.
template <typename Values, typename Function>
inline auto folded(const Values& values, Function function) {
  auto each = values;
  for (int64_t half = SIZE / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) each[i] = function(each[i], each[i + half]);
  }
  return each[0];
}

// The logarithm of a product: exponents are added, mantissas multiplied.
inline void split(Vector& product, Bits& exponents) {
  const Bits bits = (Bits)product;
  exponents += (bits >> 23) - 127;
  product = (Vector)((bits & 0x007fffff) | 0x3f800000);
}

// Σ x l − max(l, 0) − log(1 + exp(−|l|))
inline float log_density(const float* logits, const Layer& layer, const float* x) {
  Vector sum = all(0.0f), product = all(1.0f);
  Bits exponents = {};
  for (int64_t i = 0, next = 0; i < layer.width; i = next) {
    next = i + FACTORS * SIZE < layer.width ? i + FACTORS * SIZE : layer.width;
    for (int64_t j = i; j < next; j += SIZE) {
      const Vector l = *reinterpret_cast<const Vector*>(logits + j) +
                       *reinterpret_cast<const Vector*>(layer.bias + j);
      const Vector high = larger(all(0.0f), l);
      sum += *reinterpret_cast<const Vector*>(x + j) * l - high;
      product += product * decay((Vector)((Bits)l & 0x7fffffff));
    }
    split(product, exponents);
  }
  const double exponent = folded(exponents, [](auto a, auto b) { return a + b; });
  const float mantissa = folded(product, [](auto a, auto b) { return a * b; });
  const double logs = exponent * 0.6931471805599453 + std::log(mantissa);
  return static_cast<float>(folded(sum, [](auto a, auto b) { return a + b; }) - logs);
}

struct Free {
  void operator()(float* memory) const { operator delete[](memory, std::align_val_t(64)); }
};

// The products leave the padding of rows as it is.
inline void clear_padding(const Arguments& a, float* values) {
  for (int64_t i = 0; i < a.num_layers; ++i) {
    const Layer& layer = a.layers[i];
    for (int64_t r = 0; r < ROWS; ++r, values += layer.width) {
      std::memset(values + layer.outputs, 0, (layer.width - layer.outputs) * sizeof(float));
    }
  }
}

void add(const Arguments& a, const float* input, float* result) {
  int64_t size = 0;
  for (int64_t i = 0; i < a.num_layers; ++i) size += a.layers[i].width * ROWS;
  std::unique_ptr<float, Free> memory(new (std::align_val_t(64)) float[size]);
  clear_padding(a, memory.get());
  for (int64_t first = 0; first < a.rows; first += ROWS) {
    const int64_t rows = a.rows - first < ROWS ? a.rows - first : ROWS;
    const float* below = input + first * a.layers[0].inputs;
    int64_t stride = a.layers[0].inputs;
    float* above = memory.get();
    for (int64_t i = 0; i < a.num_layers; ++i) {
      const Layer& layer = a.layers[i];
      const float one = 1, zero = 0;
      a.product("N", "N", &layer.outputs, &rows, &layer.inputs, &one, layer.weight, &layer.outputs,
                below, &stride, &zero, above, &layer.width);
      below = above;
      stride = layer.width;
      above += layer.width * ROWS;
      if (i == a.num_layers - 1) break;
      for (int64_t r = 0; r < rows; ++r) activate(const_cast<float*>(below) + r * stride, layer);
    }
    const Layer& last = a.layers[a.num_layers - 1];
    for (int64_t r = 0; r < rows; ++r) {
      const float* x = a.data + (first + r) % a.num_data * last.width;
      result[first + r] += log_density(below + r * stride, last, x);
    }
  }
}

}  // namespace bernoulli_rows

extern "C" void bernoulli_rows_add(const bernoulli_rows::Arguments* arguments, const float* input,
                                   float* result) {
  bernoulli_rows::add(*arguments, input, result);
}
