// Adam on rows of a parameter whose gradient is a sum of products: adam_rows.py describes it.
#include <cmath>

namespace adam_rows {

constexpr int BYTES = 4 * VECTOR_FLOATS;                // of a vector
constexpr int VECTORS = VECTOR_FLOATS == 16 ? 4 : 2;  // of a tile's row
constexpr int ROWS = 6;  // of a tile: its sums stay in registers

struct Factor {
  const void *left, *right;
  int64_t depth, left_stride, right_stride;
};

struct Arguments {
  void *parameter, *mean, *square;
  const void* numbers;
  const Factor* factors;
  int64_t num_factors, rows, columns, is_double, decoupled;
  double first, second, eps, weight_decay;
};

template <typename T, int N>
struct Packed {
  typedef T type __attribute__((vector_size(N * sizeof(T)), aligned(alignof(T)), may_alias));
};

template <typename T, int N>
using Vector = typename Packed<T, N>::type;

// m / (√v c + ε)
template <typename T, int N>
inline Vector<T, N> ratio(Vector<T, N> mean, Vector<T, N> square, T correction, T eps) {
#if defined(__AVX512F__)
  if constexpr (N * sizeof(T) == 64 && sizeof(T) == 4) {
    // Division and root take 20 cycles; one Newton step from 14 bits gives single precision.
    const __m512 v = (__m512)square;
    const bool is_usual = _mm512_cmp_ps_mask(v, _mm512_set1_ps(3e38f), _CMP_LE_OQ) == 0xffff;
    if (is_usual && eps > 1e-15f) {
      __m512 inverse = _mm512_rsqrt14_ps(v);
      const __m512 error = _mm512_mul_ps(_mm512_mul_ps(v, inverse), inverse);
      inverse = _mm512_mul_ps(
          inverse, _mm512_fnmadd_ps(error, _mm512_set1_ps(0.5f), _mm512_set1_ps(1.5f)));
      // The root of a subnormal number is far below ε.
      const __mmask16 is_normal = _mm512_cmp_ps_mask(v, _mm512_set1_ps(1.2e-38f), _CMP_GE_OQ);
      const __m512 root = _mm512_maskz_mul_ps(is_normal, v, inverse);
      const __m512 below = _mm512_fmadd_ps(root, _mm512_set1_ps(correction), _mm512_set1_ps(eps));
      __m512 over = _mm512_rcp14_ps(below);
      over = _mm512_mul_ps(over, _mm512_fnmadd_ps(below, over, _mm512_set1_ps(2.0f)));
      return mean * (Vector<T, N>)over;
    }
  }
#endif
  Vector<T, N> root;
  for (int i = 0; i < N; ++i) root[i] = std::sqrt(square[i]);
  return mean / (root * correction + eps);
}

template <typename T, int N, int R, int V>
inline void tile(const Arguments& a, int64_t row, int64_t column) {
  using Values = Vector<T, N>;
  Values sums[R][V] = {};
  for (int64_t f = 0; f < a.num_factors; ++f) {
    const Factor& factor = a.factors[f];
    const T* left = static_cast<const T*>(factor.left) + row;
    const T* right = static_cast<const T*>(factor.right) + column;
    for (int64_t b = 0; b < factor.depth; ++b) {
      Values values[V];
      for (int j = 0; j < V; ++j) values[j] = *reinterpret_cast<const Values*>(right + j * N);
      for (int i = 0; i < R; ++i) {
        for (int j = 0; j < V; ++j) sums[i][j] += left[i] * values[j];
      }
      left += factor.left_stride;
      right += factor.right_stride;
    }
  }
  const T* numbers = static_cast<const T*>(a.numbers);
  const T size = numbers[0], correction = numbers[1], decay = numbers[2];
  const T first = a.first, second = a.second, rest = 1 - a.second, eps = a.eps;
  for (int i = 0; i < R; ++i) {
    for (int j = 0; j < V; ++j) {
      const int64_t at = (row + i) * a.columns + column + j * N;
      auto& parameter = *reinterpret_cast<Values*>(static_cast<T*>(a.parameter) + at);
      auto& mean = *reinterpret_cast<Values*>(static_cast<T*>(a.mean) + at);
      auto& square = *reinterpret_cast<Values*>(static_cast<T*>(a.square) + at);
      Values grad = sums[i][j], value = parameter;
      if (a.weight_decay != 0) {
        if (a.decoupled) {
          value *= decay;
        } else {
          grad += static_cast<T>(a.weight_decay) * value;
        }
      }
      const Values new_mean = mean + first * (grad - mean);
      const Values new_square = square * second + rest * (grad * grad);
      mean = new_mean;
      square = new_square;
      parameter = value + size * ratio<T, N>(new_mean, new_square, correction, eps);
    }
  }
}

template <typename T, int N, int R, int V>
inline int64_t columns_from(const Arguments& a, int64_t row, int64_t column) {
  for (; column + N * V <= a.columns; column += N * V) tile<T, N, R, V>(a, row, column);
  return column;
}

template <typename T, int R>
inline void tiles(const Arguments& a, int64_t row) {
  constexpr int N = BYTES / sizeof(T);
  int64_t column = columns_from<T, N, R, VECTORS>(a, row, 0);
  column = columns_from<T, N, R, 1>(a, row, column);
  column = columns_from<T, 4, R, 1>(a, row, column);
  columns_from<T, 1, R, 1>(a, row, column);
}

template <typename T>
void update(const Arguments& a) {
  int64_t row = 0;
  for (; row + ROWS <= a.rows; row += ROWS) tiles<T, ROWS>(a, row);
  for (; row < a.rows; ++row) tiles<T, 1>(a, row);
}

}  // namespace adam_rows

extern "C" void adam_rows_update(const adam_rows::Arguments* arguments) {
  if (arguments->is_double) {
    adam_rows::update<double>(*arguments);
  } else {
    adam_rows::update<float>(*arguments);
  }
}
