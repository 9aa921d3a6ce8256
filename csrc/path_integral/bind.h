// pybind11 face of the path-integral kernels, the same for _C and _C_cuda: raw addresses, int64
// sizes. python/sublimate/_native/path_integral.py is the only caller and checks what they mean.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "path_integral/kernels.h"

namespace sublimate::path_integral {

struct Target {
  int (*points)(const Points&);
  int (*accumulate)(const Accumulate&);
  int (*difference)(const Difference&);
  int (*scale)(const Scale&);
  int (*mask_points)(const MaskPoints&);
  int (*mask_grad)(const MaskGrad&);
  int (*mask_penalty)(const MaskPenalty&);
};

inline void bind(pybind11::module_& m, const Target& t) {
  namespace py = pybind11;
  using Address = uintptr_t;
  using Release = py::call_guard<py::gil_scoped_release>;
  static const auto in = [](Address a) { return reinterpret_cast<const void*>(a); };
  static const auto out = [](Address a) { return reinterpret_cast<void*>(a); };
  static const auto integers = [](Address a) { return reinterpret_cast<const int64_t*>(a); };
  static const auto starts = [](Address data, int64_t rows, Address index) {
    return Starts{in(data), rows, integers(index)};
  };
  static const auto noise = [](Address stdev, Address seed, Address row, int64_t step,
                               Address table) {
    return Noise{in(stdev), integers(seed), integers(row), step,
                 reinterpret_cast<const float*>(table)};
  };

  m.def(
      "path_points",
      [t](int dtype, Address x, Address base, int64_t base_rows, Address index, Address alpha,
          bool each_sample, Address stdev, Address seed, Address row, int64_t step, Address table,
          Address result, int64_t points, int64_t samples, int64_t size, int device, Address stream,
          int threads) {
        return t.points({dtype,
                         in(x),
                         starts(base, base_rows, index),
                         {in(alpha), each_sample},
                         noise(stdev, seed, row, step, table),
                         out(result),
                         points,
                         samples,
                         size,
                         {device, out(stream), threads}});
      },
      Release());
  m.def(
      "path_accumulate",
      [t](int dtype, Address grads, Address weight, bool each_sample, Address x, Address base,
          int64_t base_rows, Address index, Address acc, Address square, Address first,
          Address second, int64_t points, int64_t samples, int64_t size, int device, Address stream,
          int threads) {
        return t.accumulate({dtype,
                             in(grads),
                             {in(weight), each_sample},
                             in(x),
                             starts(base, base_rows, index),
                             in(acc),
                             in(square),
                             out(first),
                             out(second),
                             points,
                             samples,
                             size,
                             {device, out(stream), threads}});
      },
      Release());
  m.def(
      "path_difference",
      [t](int dtype, Address up, Address weight, bool each_sample, Address x, Address base,
          int64_t base_rows, Address index, Address result, int64_t points, int64_t samples,
          int64_t size, int device, Address stream, int threads) {
        return t.difference({dtype,
                             in(up),
                             {in(weight), each_sample},
                             in(x),
                             starts(base, base_rows, index),
                             out(result),
                             points,
                             samples,
                             size,
                             {device, out(stream), threads}});
      },
      Release());
  m.def(
      "path_scale",
      [t](int dtype, Address acc, Address x, Address base, int64_t base_rows, Address result,
          Address sums, int64_t samples, int64_t size, int device, Address stream, int threads) {
        return t.scale({dtype,
                        in(acc),
                        in(x),
                        in(base),
                        base_rows,
                        out(result),
                        out(sums),
                        samples,
                        size,
                        {device, out(stream), threads}});
      },
      Release());
  m.def(
      "path_mask_points",
      [t](int dtype, Address image, Address base, Address mask, Address alpha, int64_t base_images,
          Address stdev, Address seed, Address row, int64_t step, Address table, Address result,
          int64_t points, int64_t images, int64_t channels, int64_t height, int64_t width,
          int64_t mask_height, int64_t mask_width, int device, Address stream, int threads) {
        return t.mask_points({dtype,
                              in(image),
                              in(base),
                              in(mask),
                              in(alpha),
                              base_images,
                              noise(stdev, seed, row, step, table),
                              out(result),
                              points,
                              images,
                              channels,
                              height,
                              width,
                              mask_height,
                              mask_width,
                              {device, out(stream), threads}});
      },
      Release());
  m.def(
      "path_mask_grad",
      [t](int dtype, Address grads, Address image, Address base, Address alpha, int64_t base_images,
          Address pixels, Address result, int64_t points, int64_t images, int64_t channels,
          int64_t height, int64_t width, int64_t mask_height, int64_t mask_width, int device,
          Address stream, int threads) {
        return t.mask_grad({dtype,
                            in(grads),
                            in(image),
                            in(base),
                            in(alpha),
                            base_images,
                            out(pixels),
                            out(result),
                            points,
                            images,
                            channels,
                            height,
                            width,
                            mask_height,
                            mask_width,
                            {device, out(stream), threads}});
      },
      Release());
  m.def(
      "path_mask_penalty",
      [t](int dtype, Address mask, Address variation, Address area, Address grad, int64_t images,
          int64_t height, int64_t width, int device, Address stream, int threads) {
        return t.mask_penalty({dtype,
                               in(mask),
                               out(variation),
                               out(area),
                               out(grad),
                               images,
                               height,
                               width,
                               {device, out(stream), threads}});
      },
      Release());
}

}  // namespace sublimate::path_integral
