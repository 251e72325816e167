// A second device for PyTorch, called `other`. Its memory is the computer's own and its arithmetic the CPU's; what it
// adds is strictness. As CUDA does it refuses tensors of several devices in one operation. It refuses what goes wrong
// unseen on Apple's GPUs: a copy that is still under way when its source may be gone, a copy from a second thread, and
// on request numbers of double precision. Fresh memory holds rubbish. Waits, copies and bytes are counted, and there is
// a limit of memory on request.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/DispatchStub.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <atomic>
#include <set>
#include <string>

using at::Tensor;
using c10::DispatchKey;
using Stack = torch::jit::Stack;

static constexpr auto OTHER = c10::DeviceType::PrivateUse1;
static const c10::Device device() { return {OTHER, 0}; }

// ---------- what is counted, and what is asked for ----------

static std::atomic<int64_t> waits{0}, sent{0}, kernels{0}, bytes{0}, peak{0};
static std::atomic<int64_t> limit{0}; // bytes; 0: none
static std::atomic<bool> refuses_double{false};
static thread_local bool inside = false; // an operation's own copies to the CPU and back are none of the program's

struct Inside {
  bool was = inside;
  Inside() { inside = true; }
  ~Inside() { inside = was; }
};

// ---------- memory: blocks of the computer's own, with their size before them ----------

static constexpr size_t HEAD = 64;

static void release(void* p) {
  char* block = (char*)p - HEAD;
  bytes -= *(size_t*)block;
  free(block);
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    if (!n) return {nullptr, nullptr, &c10::detail::deleteNothing, device()};
    if (limit && bytes + (int64_t)n > limit)
      C10_THROW_ERROR(OutOfMemoryError, c10::str("other out of memory. Tried to allocate ", n, " bytes."));
    void* block = nullptr;
    TORCH_CHECK(!posix_memalign(&block, HEAD, n + HEAD), "The computer itself is out of memory.");
    *(size_t*)block = n;
    bytes += n;
    if (bytes > peak) peak = bytes.load();
    void* p = (char*)block + HEAD;
    memset(p, 0xAB, n); // zeros would be right by luck
    return {p, p, &release, device()};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t n) const override { memcpy(to, from, n); }
};

static Memory memory;
REGISTER_ALLOCATOR(OTHER, &memory);

// ---------- one device, one stream ----------

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = OTHER;
  Guard() = default;
  explicit Guard(c10::DeviceType) {}
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, device()); }
  c10::DeviceType type() const override { return OTHER; }
  c10::Device exchangeDevice(c10::Device) const override { return device(); }
  c10::Device getDevice() const override { return device(); }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  bool isPinnedPtr(const void*) const override { return false; }
};
static Hooks hooks;
static const bool registered = (at::RegisterPrivateUse1HooksInterface(&hooks), true);

// ---------- tensors: made, seen as the CPU sees them, copied ----------

static void check_type(at::ScalarType t) {
  const bool is_double = t == at::kDouble || t == at::kComplexDouble;
  TORCH_CHECK_TYPE(!(refuses_double && is_double), "There is no float64 on this device. Use float32 instead.");
}

static Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>,
                    std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const auto t = c10::dtype_or_default(type);
  check_type(t);
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(DispatchKey::PrivateUse1), t, format);
}

static Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> type,
                            std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  const auto t = c10::dtype_or_default(type);
  check_type(t);
  return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(DispatchKey::PrivateUse1), t);
}

static Tensor as_seen_by_cpu(const Tensor& t) { // the same memory
  if (t.is_cpu()) return t;
  return at::from_blob(t.data_ptr(), t.sizes(), t.strides(), t.options().device(at::kCPU).requires_grad(false));
}

static Tensor copy_from(const Tensor& from, const Tensor& to, bool non_blocking) {
  const bool sends = from.is_cpu() && !to.is_cpu();
  TORCH_CHECK(!(sends && non_blocking),
    "A non_blocking copy from memory that is not pinned: the source may be gone before it is read.");
  TORCH_CHECK(!sends || inside || getpid() == syscall(SYS_gettid),
    "A copy from a second thread: only one thread may use the device.");
  if (!inside && sends) sent++;
  if (!inside && !from.is_cpu() && to.is_cpu()) waits++; // for what is to be copied
  if (!inside && !from.is_cpu() && !to.is_cpu()) kernels++;
  at::NoGradGuard no_grad;
  at::AutoDispatchBelowADInplaceOrView below;
  const Tensor source = as_seen_by_cpu(from);
  if (source.numel()) as_seen_by_cpu(to).copy_(source.is_conj() ? source.resolve_conj() : source);
  return to;
}

static Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  const_cast<Tensor&>(to).resize_(from.sizes());
  return copy_from(from, to, false);
}

// ---------- operations ----------

// Those that look at shapes alone, and the reading of one number, are the CPU's on the same memory
static void as_on_cpu(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  if (op.schema().name() == "aten::_local_scalar_dense" && !inside) waits++;
  op.redispatchBoxed(c10::DispatchKeySet(DispatchKey::CPU), stack);
}

// Whoever asks for these must know how large the result is, and so waits for it
static const std::set<std::string> OF_UNKNOWN_SIZE{
  "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero", "aten::unique_dim", "aten::_unique2",
  "aten::unique_consecutive", "aten::bincount", "aten::repeat_interleave"};
// These take an index from the CPU, which CUDA, too, then sends by itself; "aten::index" has sent it, and waited for the
// places of a mask, when it gets here
static const std::set<std::string> INDEXING{"aten::index_put", "aten::index_put_", "aten::_index_put_impl_"};

static std::vector<Tensor> tensors_of(const c10::IValue& v) {
  if (v.isTensor()) return {v.toTensor()};
  if (v.isTensorList()) return v.toTensorVector();
  std::vector<Tensor> found;
  if (v.isOptionalTensorList())
    for (const std::optional<Tensor>& t : v.toOptionalTensorVector()) if (t) found.push_back(*t);
  return found;
}

// All others are computed by the CPU, on copies
static void compute(const c10::OperatorHandle& op, Stack* stack) {
  const auto& name = op.schema().operator_name().name;
  const auto& arguments = op.schema().arguments();
  const auto first = stack->size() - arguments.size();
  const bool indexing = name == "aten::index" || INDEXING.count(name);
  bool unknown_size = OF_UNKNOWN_SIZE.count(name);
  for (size_t i = 0; i < arguments.size(); i++) {
    const bool index = indexing && arguments[i].name() == "indices";
    for (const Tensor& t : tensors_of((*stack)[first + i])) {
      if (!t.defined()) continue;
      const bool counts = index && INDEXING.count(name) && !inside;
      if (counts && t.scalar_type() == at::kBool) unknown_size = true;
      if (!t.is_cpu() || t.dim() == 0) continue; // one number goes along with a kernel's arguments
      if (counts) sent++;
      else TORCH_CHECK(index, "Expected all tensors to be on the same device, but found other:0 and cpu: ", name,
                       ", argument ", arguments[i].name(), ".");
    }
  }
  if (unknown_size && !inside) waits++;
  if (!inside) kernels++;
  Inside now;
  at::native::cpu_fallback(op, stack);
}

static Tensor convolution(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b, at::IntArrayRef stride,
                          at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                          at::IntArrayRef output_padding, int64_t groups) {
  const bool with_bias = b && b->defined();
  TORCH_CHECK(!x.is_cpu() && !w.is_cpu() && !(with_bias && b->is_cpu()),
    "Expected all tensors to be on the same device: aten::convolution.");
  if (!inside) kernels++;
  Inside now;
  const auto bias = with_bias ? std::optional<Tensor>(as_seen_by_cpu(*b)) : std::nullopt;
  return at::convolution(as_seen_by_cpu(x), as_seen_by_cpu(w), bias, stride, padding, dilation, transposed,
                         output_padding, groups).to(x.device());
}

static std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& x, const Tensor& w, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups,
    std::array<bool, 3> wanted) {
  if (!inside) kernels++;
  Inside now;
  const std::vector<int64_t> bias{w.size(0)};
  auto [of_x, of_w, of_b] = at::convolution_backward(
    as_seen_by_cpu(gradient), as_seen_by_cpu(x), as_seen_by_cpu(w), bias, stride, padding, dilation, transposed,
    output_padding, groups, wanted);
  const auto back = [&](const Tensor& t) { return t.defined() ? t.to(x.device()) : t; };
  return {back(of_x), back(of_w), back(of_b)};
}

// Attention by its formula, of operations that are there
static int64_t attention_by_formula(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double,
                                    bool, std::optional<double>, bool) {
  return (int64_t)sdp::SDPBackend::math;
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&compute>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  for (const char* name : {"as_strided", "view", "unfold", "_reshape_alias", "resize_", "set_.source_Tensor",
                           "set_.source_Storage", "set_.source_Storage_storage_offset", "_local_scalar_dense"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&as_on_cpu>());
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
  m.impl("_fused_sdp_choice", &attention_by_formula);
}
namespace at::native { REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &attention_by_formula) }

// ---------- autocast: which operations are in half precision and which never, as on CUDA ----------

#define HALF(OP) KERNEL_PRIVATEUSEONE(OP, lower_precision_fp)
#define SINGLE(OP) KERNEL_PRIVATEUSEONE(OP, fp32)

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  using namespace at::autocast;
  HALF(_convolution) HALF(conv1d) HALF(conv2d) HALF(matmul) HALF(mm) HALF(mv) HALF(bmm) HALF(addmm) HALF(baddbmm)
  HALF(linear) HALF(scaled_dot_product_attention)
  SINGLE(exp) SINGLE(log) SINGLE(log1p) SINGLE(layer_norm) SINGLE(group_norm) SINGLE(nll_loss) SINGLE(mse_loss)
  SINGLE(l1_loss) SINGLE(cosine_similarity) SINGLE(cdist) SINGLE(dist) SINGLE(cumsum) SINGLE(prod)
  KERNEL_PRIVATEUSEONE(pow, Tensor_Scalar, fp32)
  KERNEL_PRIVATEUSEONE(softmax, int, fp32_set_opt_dtype)
  KERNEL_PRIVATEUSEONE(log_softmax, int, fp32_set_opt_dtype)
  KERNEL_PRIVATEUSEONE(sum, fp32_set_opt_dtype)
  KERNEL_PRIVATEUSEONE(sum, dim_IntList, fp32_set_opt_dtype)
}

// ---------- for Python, as torch.ops.other_device ----------

TORCH_LIBRARY(other_device, m) {
  m.def("counts", [] { // waits, copies to the device, operations there, bytes now and at most
    return std::vector<int64_t>{waits, sent, kernels, bytes, peak};
  });
  m.def("reset", [] { waits = sent = kernels = 0; peak = bytes.load(); });
  m.def("refuse_double", [](bool yes) { refuses_double = yes; });
  m.def("limit", [](int64_t n) { limit = n; });
}
