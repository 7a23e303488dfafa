// oneDNN's 3D convolution and its two gradients as custom calls of XLA (jax.ffi).
//
// Arrays are float32 and laid out as everywhere in covid_jax: activations (N, D, H, W, C), kernels
// (kd, kh, kw, C, features). Every axis of a kernel of k taps is padded by (k - 1) / 2 in front, and
// behind as far as its last window reaches. oneDNN's names of axes are N, C, D, H, W.

#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using dnnl::memory;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;
using Sizes = ffi::Span<const int64_t>;

const dnnl::engine& Engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

// The sizes of one convolution, whichever of its three passes is asked for.
struct Convolution {
  memory::dims input, kernel, output, strides, before, behind;

  Convolution(Sizes x, Sizes w, Sizes y, Sizes s)
      : input{x[0], x[4], x[1], x[2], x[3]},
        kernel{w[4], w[3], w[0], w[1], w[2]},
        output{y[0], y[4], y[1], y[2], y[3]},
        strides(s.begin(), s.end()) {
    for (int axis = 0; axis < 3; ++axis) {
      before.push_back((w[axis] - 1) / 2);
      behind.push_back((y[axis + 1] - 1) * s[axis] + w[axis] - x[axis + 1] - before[axis]);
    }
  }

  static memory::desc Activations(const memory::dims& sizes) {
    return {sizes, memory::data_type::f32, memory::format_tag::ndhwc};
  }
  memory::desc Input() const { return Activations(input); }
  memory::desc Output() const { return Activations(output); }
  memory::desc Kernel() const {
    return {kernel, memory::data_type::f32, memory::format_tag::dhwio};
  }
  // oneDNN picks the layout of the kernel that its fastest implementation reads.
  memory::desc AnyKernel() const {
    return {kernel, memory::data_type::f32, memory::format_tag::any};
  }
  dnnl::convolution_forward::primitive_desc Forward() const {
    return {Engine(),    dnnl::prop_kind::forward_training, dnnl::algorithm::convolution_direct,
            Input(),     AnyKernel(),                       Output(),
            strides,     before,                            behind};
  }
  dnnl::convolution_backward_data::primitive_desc BackwardInput() const {
    return {Engine(), dnnl::algorithm::convolution_direct, Input(), AnyKernel(), Output(), strides,
            before,   behind,                              Forward()};
  }
  dnnl::convolution_backward_weights::primitive_desc BackwardKernel() const {
    return {Engine(), dnnl::algorithm::convolution_direct, Input(), AnyKernel(), Output(), strides,
            before,   behind,                              Forward()};
  }
};

memory Over(const memory::desc& layout, Array array) {
  return memory(layout, Engine(), array.untyped_data());
}

// `kernel` in the layout `wanted`: itself, or a copy.
memory Laid(const memory& kernel, const memory::desc& wanted, dnnl::stream& stream) {
  if (wanted == kernel.get_desc()) return kernel;
  memory copy(wanted, Engine());
  dnnl::reorder(kernel, copy).execute(stream, const_cast<memory&>(kernel), copy);
  return copy;
}

// Runs one pass. Each takes all cores, so XLA's threads come here one after the other.
template <typename Pass>
ffi::Error Run(Pass pass) {
  static std::mutex one_at_a_time;
  std::lock_guard<std::mutex> lock(one_at_a_time);
  static dnnl::stream stream(Engine());
  try {
    pass(stream);
    stream.wait();
  } catch (const dnnl::error& error) {
    return ffi::Error::Internal(std::string("oneDNN: ") + error.what());
  }
  return ffi::Error::Success();
}

ffi::Error Forward(Array x, Array w, Result y, Sizes strides) {
  return Run([&](dnnl::stream& stream) {
    const Convolution conv(x.dimensions(), w.dimensions(), y->dimensions(), strides);
    const auto chosen = conv.Forward();
    memory kernel = Laid(Over(conv.Kernel(), w), chosen.weights_desc(), stream);
    dnnl::convolution_forward(chosen).execute(stream, {{DNNL_ARG_SRC, Over(conv.Input(), x)},
                                                       {DNNL_ARG_WEIGHTS, kernel},
                                                       {DNNL_ARG_DST, Over(conv.Output(), *y)}});
  });
}

ffi::Error GradientToInput(Array dy, Array w, Result dx, Sizes strides) {
  return Run([&](dnnl::stream& stream) {
    const Convolution conv(dx->dimensions(), w.dimensions(), dy.dimensions(), strides);
    const auto chosen = conv.BackwardInput();
    memory kernel = Laid(Over(conv.Kernel(), w), chosen.weights_desc(), stream);
    dnnl::convolution_backward_data(chosen).execute(
        stream, {{DNNL_ARG_DIFF_SRC, Over(conv.Input(), *dx)},
                 {DNNL_ARG_WEIGHTS, kernel},
                 {DNNL_ARG_DIFF_DST, Over(conv.Output(), dy)}});
  });
}

ffi::Error GradientToKernel(Array x, Array dy, Result dw, Sizes strides) {
  return Run([&](dnnl::stream& stream) {
    const Convolution conv(x.dimensions(), dw->dimensions(), dy.dimensions(), strides);
    const auto chosen = conv.BackwardKernel();
    memory wanted = Over(conv.Kernel(), *dw);
    const bool direct = chosen.diff_weights_desc() == wanted.get_desc();
    memory kernel = direct ? wanted : memory(chosen.diff_weights_desc(), Engine());
    dnnl::convolution_backward_weights(chosen).execute(
        stream, {{DNNL_ARG_SRC, Over(conv.Input(), x)},
                 {DNNL_ARG_DIFF_WEIGHTS, kernel},
                 {DNNL_ARG_DIFF_DST, Over(conv.Output(), dy)}});
    if (!direct) dnnl::reorder(kernel, wanted).execute(stream, kernel, wanted);
  });
}

auto Binding() {
  return ffi::Ffi::Bind().Arg<Array>().Arg<Array>().Ret<Array>().Attr<Sizes>("strides");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(forward, Forward, Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(gradient_to_input, GradientToInput, Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(gradient_to_kernel, GradientToKernel, Binding());
