// The monomials of a polynomial, generated from their product tree a few at a time for the rows
// that lie across vectors. With x_0 = 1 beside the channels x_1 .. x_D, the monomials of degree <=
// g are the products x_a1 ... x_ag with 0 <= a1 <= ... <= ag <= D, here in lexical order: one
// multiplication each, of a prefix that a run of them shares.
#pragma once

#include "kronecker_attention/cpu.h"

namespace sublimate::kronecker_attention::SUBLIMATE_ISA {
namespace {

// Indices of one monomial. A polynomial of degree 0 is taken as degree 1 in no variable.
struct Place {
  int last, degree;  // largest index, number of indices
  int index[MAX_DEGREE];

  Place(int64_t channels, int degree_)
      : last(degree_ == 0 ? 0 : int(channels)), degree(std::max(degree_, 1)) {
    std::fill_n(index, MAX_DEGREE, 0);
  }
  int64_t count() const { return monomials(last, degree); }
  bool done() const { return index[0] > last; }

  void seek(int64_t rank) {
    for (int t = 0, a = 0; t < degree; ++t) {
      const int left = degree - 1 - t;
      for (int64_t n; rank >= (n = monomials(last - a, left)); ++a) rank -= n;
      index[t] = a;
    }
  }
  // Monomials from here on that differ in the last index only.
  int run() const { return last + 1 - index[degree - 1]; }
  // Moves on by n <= run(); returns the first index but the last one that changed, degree if none.
  int advance(int n) {
    int t = degree - 1;
    index[t] += n;
    if (index[t] <= last || t == 0) return degree;
    do --t;
    while (t > 0 && index[t] == last);
    ++index[t];
    std::fill(index + t + 1, index + degree, index[t]);
    return t;
  }
};

// scale^|alpha| |alpha|! / alpha! and |alpha| of monomials in order.
template <class A>
void monomial_weights(Place place, double scale, int64_t first, int64_t count, A* weight,
                      uint8_t* degree) {
  place.seek(first);
  for (int64_t i = 0; i < count; ++i) {
    double w = 1;
    int total = 0, repeated = 0;
    for (int t = 0; t < place.degree; ++t) {
      if (place.index[t] == 0) continue;
      repeated = t > 0 && place.index[t] == place.index[t - 1] ? repeated + 1 : 1;
      w *= scale * ++total / repeated;
    }
    weight[i] = A(w);
    degree[i] = uint8_t(total);
    place.advance(1);
  }
}

// to [width] = a * b; width is a multiple of LANES.
template <class A>
SUBLIMATE_HD void multiply(const A* a, const A* b, int64_t width, A* to) {
  for (int64_t l = 0; l < width; l += LANES<A>) {
    tile::store(to + l, tile::load(a + l) * tile::load(b + l));
  }
}
template <class A>
SUBLIMATE_HD void multiply_add(const A* a, const A* b, int64_t width, A* to) {
  for (int64_t l = 0; l < width; l += LANES<A>) {
    tile::store(to + l, tile::load(to + l) + tile::load(a + l) * tile::load(b + l));
  }
}

// Features of `width` rows. x [D + 1, width] with x_0 = 1, or all 0 for a row that does not count.
template <class A>
class Features {
 public:
  static int64_t memory(int degree, int64_t width) { return std::max(degree, 1) * width; }
  Features(Place place, const A* x, int64_t width, A* memory)
      : place_(place), x_(x), width_(width), prefix_(memory) {}

  void seek(int64_t rank) {
    place_.seek(rank);
    refresh(0);
  }
  // The next n features, [n, width].
  void next(int64_t n, A* to) {
    while (n > 0) {
      const int run = int(std::min<int64_t>(n, place_.run()));
      const A* prefix = level(place_.degree - 1);
      const A* x = x_ + place_.index[place_.degree - 1] * width_;
      for (int i = 0; i < run; ++i, to += width_) multiply(prefix, x + i * width_, width_, to);
      n -= run;
      const int changed = place_.advance(run);
      if (!place_.done()) refresh(changed);
    }
  }

 private:
  // Product of the first t indices.
  const A* level(int t) const { return t == 0 ? x_ : prefix_ + t * width_; }
  void refresh(int from) {
    for (int t = from; t < place_.degree - 1; ++t) {
      multiply(level(t), x_ + place_.index[t] * width_, width_, prefix_ + (t + 1) * width_);
    }
  }

  Place place_;
  const A* x_;
  int64_t width_;
  A* prefix_;  // [degree, width], the first not used
};

// The same walk, adding to dx [D + 1, width] what gradients of all features give; prefixes pass
// theirs on when the walk leaves them.
template <class A>
class FeatureGradients {
 public:
  static int64_t memory(int degree, int64_t width) { return 2 * std::max(degree, 1) * width; }
  FeatureGradients(Place place, const A* x, int64_t width, A* dx, A* memory)
      : place_(place),
        x_(x),
        dx_(dx),
        width_(width),
        prefix_(memory),
        dprefix_(memory + place.degree * width) {}

  void seek(int64_t rank) {
    place_.seek(rank);
    refresh(0);
  }
  void next(int64_t n, const A* dfeature) {
    const int top = place_.degree - 1;
    while (n > 0) {
      const int run = int(std::min<int64_t>(n, place_.run()));
      const A* prefix = level(top);
      A* dprefix = dprefix_ + top * width_;
      const int64_t first = place_.index[top] * width_;
      for (int i = 0; i < run; ++i, dfeature += width_) {
        const int64_t at = first + i * width_;
        for (int64_t l = 0; l < width_; l += LANES<A>) {
          const Vector<A> d = tile::load(dfeature + l);
          tile::store(dx_ + at + l, tile::load(dx_ + at + l) + d * tile::load(prefix + l));
          tile::store(dprefix + l, tile::load(dprefix + l) + d * tile::load(x_ + at + l));
        }
      }
      n -= run;
      const Place before = place_;
      const int changed = place_.advance(run);
      if (changed < place_.degree) {
        leave(before, changed);
        if (!place_.done()) refresh(changed);
      }
    }
  }
  // Passes on what the prefixes still hold, where the walk ends before the last feature.
  void finish() {
    if (!place_.done()) leave(place_, 0);
  }

 private:
  const A* level(int t) const { return t == 0 ? x_ : prefix_ + t * width_; }
  void leave(const Place& before, int down_to) {
    for (int t = before.degree - 1; t > down_to; --t) {
      const int64_t at = before.index[t - 1] * width_;
      const A* d = dprefix_ + t * width_;
      multiply_add(d, level(t - 1), width_, dx_ + at);
      if (t > 1) multiply_add(d, x_ + at, width_, dprefix_ + (t - 1) * width_);
    }
  }
  void refresh(int from) {
    std::fill(dprefix_ + (from == 0 ? 0 : from + 1) * width_, dprefix_ + place_.degree * width_,
              A(0));
    for (int t = from; t < place_.degree - 1; ++t) {
      multiply(level(t), x_ + place_.index[t] * width_, width_, prefix_ + (t + 1) * width_);
    }
  }

  Place place_;
  const A* x_;
  A* dx_;
  int64_t width_;
  A *prefix_, *dprefix_;  // [degree, width] each
};

}  // namespace
}  // namespace sublimate::kronecker_attention::SUBLIMATE_ISA
