// log Bernoulli(x | b + W h) summed over pixels, for rows h: bernoulli_rows.py describes it.
#include <cmath>
#include <initializer_list>
#include <memory>
#include <new>

namespace bernoulli_rows {

constexpr int64_t SIZE = VECTOR_FLOATS;
constexpr int VECTORS = 3;                    // of a tile's row
constexpr int TILE = SIZE == 16 ? 8 : 4;      // rows of a tile, whose sums stay in registers
constexpr int64_t PACKED = 8;                 // columns of W that are stored together
constexpr int64_t FACTORS = 96;               // of a product, each from 1 to 2, and terms of a sum

typedef float Vector __attribute__((vector_size(SIZE * 4), aligned(4), may_alias));
typedef int32_t Bits __attribute__((vector_size(SIZE * 4), aligned(4), may_alias));

enum Activation : int64_t { NONE, TANH, RELU };

struct Layer {
  const float *weight, *bias;
  int64_t inputs, outputs, activation;  // outputs: a multiple of PACKED; surplus logits are −100
};

struct Arguments {
  const Layer* layers;
  const float* data;  // of a pixel: those of all data, repeated
  int64_t num_layers, num_data, rows, width;
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
// thrice. At 18 it is 2.1 · 10⁻⁸, which added to 1 leaves it: any product of larger y stays as it is.
inline Vector decay(Vector y) {
  Vector e =
      polynomial(-smaller(all(18.0f), y), {3.32035244e-09f, 2.3657617e-07f, 1.00966872e-05f,
                                           0.000325366767f, 0.00781236636f, 0.124999963f, 1.0f});
  for (int i = 0; i < 3; ++i) e *= e;
  return e;
}

// W h for TILE columns of W and V vectors of rows.
template <int V>
__attribute__((noinline)) void product(const float* weight, const float* rows, int64_t depth,
                                       float* result) {
  Vector sums[TILE][V];
#pragma GCC unroll 8
  for (int i = 0; i < TILE; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < V; ++j) sums[i][j] = all(0.0f);
  }
  for (int64_t k = 0; k < depth; ++k, weight += PACKED, rows += V * SIZE) {
    Vector values[V];
#pragma GCC unroll 3
    for (int j = 0; j < V; ++j) values[j] = *reinterpret_cast<const Vector*>(rows + j * SIZE);
#pragma GCC unroll 8
    for (int i = 0; i < TILE; ++i) {
#pragma GCC unroll 3
      for (int j = 0; j < V; ++j) sums[i][j] += weight[i] * values[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < TILE; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < V; ++j) {
      *reinterpret_cast<Vector*>(result + (i * V + j) * SIZE) = sums[i][j];
    }
  }
}

template <int V>
inline void products(const Layer& layer, int64_t column, const float* rows, float* result) {
  const float* weight = layer.weight + column * layer.inputs;
  for (int i = 0; i < PACKED; i += TILE) {
    product<V>(weight + i, rows, layer.inputs, result + i * V * SIZE);
  }
}

template <int V, typename Function>
inline void activate(float* values, const float* bias, Function function) {
  for (int i = 0; i < PACKED; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < V; ++j) {
      auto& value = *reinterpret_cast<Vector*>(values + (i * V + j) * SIZE);
      value = function(value + bias[i]);
    }
  }
}

template <int V>
__attribute__((noinline)) void activate(float* values, const float* bias, int64_t activation) {
  if (activation == TANH) return activate<V>(values, bias, [](Vector v) { return tanh(v); });
  activate<V>(values, bias, [](Vector v) { return larger(all(0.0f), v); });
}

// The terms of the last pixels, and the sums of those before.
template <int V>
struct Sums {
  Vector sum[V], product[V];
  double totals[V * SIZE];
  Bits exponents[V];

  // The logarithm of a product: exponents are added, mantissas multiplied.
  void settle() {
    for (int j = 0; j < V; ++j) {
      const Bits bits = (Bits)product[j];
      exponents[j] += (bits >> 23) - 127;
      product[j] = (Vector)((bits & 0x007fffff) | 0x3f800000);
      for (int64_t i = 0; i < SIZE; ++i) totals[j * SIZE + i] += sum[j][i];
      sum[j] = all(0.0f);
    }
  }
};

// Σ x l − max(l, 0) − log(1 + exp(−|l|)), whose logarithms stay a product.
template <int V>
__attribute__((noinline)) void add_densities(const float* logits, const float* bias, const float* x,
                                             int64_t width, Sums<V>& sums) {
  Vector sum[V], product[V];
  for (int j = 0; j < V; ++j) {
    sum[j] = sums.sum[j];
    product[j] = sums.product[j];
  }
  for (int i = 0; i < PACKED; ++i, x += width) {
#pragma GCC unroll 3
    for (int j = 0; j < V; ++j) {
      const Vector l = *reinterpret_cast<const Vector*>(logits + (i * V + j) * SIZE) + bias[i];
      const Vector high = larger(all(0.0f), l);
      sum[j] += *reinterpret_cast<const Vector*>(x + j * SIZE) * l - high;
      product[j] += product[j] * decay((Vector)((Bits)l & 0x7fffffff));
    }
  }
  for (int j = 0; j < V; ++j) {
    sums.sum[j] = sum[j];
    sums.product[j] = product[j];
  }
}

// Rows as columns, so that a vector holds a number of each of SIZE rows; surplus rows are zero.
template <int V>
inline void transpose(const float* input, int64_t depth, int64_t count, float* result) {
  for (int64_t r = 0; r < V * SIZE; ++r) {
    for (int64_t k = 0; k < depth; ++k) {
      result[k * V * SIZE + r] = r < count ? input[r * depth + k] : 0.0f;
    }
  }
}

template <int V>
void add_block(const Arguments& a, const float* input, int64_t first, int64_t count, float* memory,
               float* result) {
  constexpr int64_t rows = V * SIZE;
  const int64_t depth = a.layers[0].inputs, last = a.num_layers - 1;
  transpose<V>(input + first * depth, depth, count, memory);
  float *below = memory, *above = memory + depth * rows;
  for (int64_t i = 0; i < last; ++i) {
    const Layer& layer = a.layers[i];
    for (int64_t c = 0; c < layer.outputs; c += PACKED) {
      products<V>(layer, c, below, above + c * rows);
      activate<V>(above + c * rows, layer.bias + c, layer.activation);
    }
    below = above;
    above += layer.outputs * rows;
  }
  const Layer& layer = a.layers[last];
  const float* x = a.data + first % a.num_data;
  Sums<V> sums = {};
  for (auto& product : sums.product) product = all(1.0f);
  for (int64_t c = 0; c < layer.outputs; c += PACKED) {
    products<V>(layer, c, below, above);
    add_densities<V>(above, layer.bias + c, x + c * a.width, a.width, sums);
    if ((c + PACKED) % FACTORS != 0 && c + PACKED < layer.outputs) continue;
    sums.settle();
  }
  for (int64_t r = 0; r < count; ++r) {
    const int64_t j = r / SIZE, i = r % SIZE;
    const double exponent = sums.exponents[j][i], mantissa = sums.product[j][i];
    const double logs = exponent * 0.6931471805599453 + std::log(mantissa);
    result[first + r] += static_cast<float>(sums.totals[r] - logs);
  }
}

struct Free {
  void operator()(float* memory) const { operator delete[](memory, std::align_val_t(64)); }
};

void add(const Arguments& a, const float* input, float* result) {
  int64_t size = a.layers[0].inputs + PACKED;  // the last layer's logits are those of a tile
  for (int64_t i = 0; i < a.num_layers - 1; ++i) size += a.layers[i].outputs;
  const std::unique_ptr<float, Free> memory(
      new (std::align_val_t(64)) float[size * VECTORS * SIZE]);
  for (int64_t first = 0, count = 0; first < a.rows; first += count) {
    const int64_t rest = a.rows - first;
    if (rest > (VECTORS - 1) * SIZE) {
      count = rest < VECTORS * SIZE ? rest : VECTORS * SIZE;
      add_block<VECTORS>(a, input, first, count, memory.get(), result);
    } else {
      count = rest < SIZE ? rest : SIZE;
      add_block<1>(a, input, first, count, memory.get(), result);
    }
  }
}

}  // namespace bernoulli_rows

extern "C" void bernoulli_rows_add(const bernoulli_rows::Arguments* arguments, const float* input,
                                   float* result) {
  bernoulli_rows::add(*arguments, input, result);
}
