// Run this bundle's library on the golden inputs, compare its outputs, time it, write result.json beside it:
//   tvm_run FOLDER [DEVICE [ROUNDS]]     DEVICE is cpu or cuda
// Exit 0 equal within the tolerance, 4 not, 2 cannot run. FOLDER holds golden.npz and interface.txt, whose lines are
// "library DEVICE FILE", "tolerance RTOL ATOL", "input NAME" and "output NAME"; the runtime's libraries (libtvm_ffi.so,
// libtvm_runtime.so) are found by LD_LIBRARY_PATH.
#include <dlfcn.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace ffi = tvm::ffi;

struct Interface {
  std::map<std::string, std::string> libraries;
  double rtol = 0, atol = 0;
  std::vector<std::string> inputs, outputs;
};

static Interface ReadInterface(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path);
  Interface found;
  std::string kind, name;
  while (file >> kind) {
    if (kind == "tolerance" && file >> found.rtol >> found.atol) continue;
    if (kind == "library" && file >> name && file >> found.libraries[name]) continue;
    if (kind == "input" && file >> name) found.inputs.push_back(name);
    else if (kind == "output" && file >> name) found.outputs.push_back(name);
    else throw std::runtime_error(path + ": unknown line: " + kind);
  }
  return found;
}

static size_t Bytes(const ffi::Tensor& t) {
  size_t n = (t.dtype().bits + 7) / 8;
  for (int64_t d : t.shape()) n *= d;
  return n;
}

static ffi::Tensor Empty(ffi::ShapeView shape, DLDataType dtype, DLDevice device) {
  static ffi::Function alloc = ffi::Function::GetGlobalRequired("runtime.TVMTensorAllocWithScope");
  return alloc(ffi::Shape(shape), dtype, device, nullptr).cast<ffi::Tensor>();
}

static ffi::Tensor Copied(const ffi::Tensor& from, DLDevice device) {
  static ffi::Function copy = ffi::Function::GetGlobalRequired("runtime.TVMTensorCopyFromTo");
  ffi::Tensor to = Empty(from.shape(), from.dtype(), device);
  copy(from, to);
  return to;
}

static uint64_t Little(const std::string& s, size_t at, int bytes) {
  if (at + bytes > s.size()) throw std::runtime_error("the golden file is truncated");
  uint64_t v = 0;
  for (int i = bytes; i-- > 0;) v = v << 8 | static_cast<unsigned char>(s[at + i]);
  return v;
}

// One array in NumPy's format.
static ffi::Tensor Array(const std::string& npy) {
  if (npy.size() < 12 || npy.compare(0, 6, "\x93NUMPY") != 0) throw std::runtime_error("the golden file holds no array");
  size_t width = npy[6] == 1 ? 2 : 4, start = 8 + width + Little(npy, 8, width);
  std::string head = npy.substr(8 + width, start - 8 - width);
  std::string descr = head.substr(head.find("'descr': '") + 10, 3);
  const std::map<std::string, DLDataType> types{
      {"<f4", {kDLFloat, 32, 1}}, {"<i8", {kDLInt, 64, 1}}, {"<i4", {kDLInt, 32, 1}},
      {"|i1", {kDLInt, 8, 1}},    {"|u1", {kDLUInt, 8, 1}}, {"|b1", {kDLBool, 8, 1}}};
  if (!types.count(descr)) throw std::runtime_error("the golden file has an array of type " + descr);
  size_t open = head.find("'shape': (") + 10;
  std::stringstream list(head.substr(open, head.find(')', open) - open));
  std::vector<int64_t> shape;
  for (std::string d; std::getline(list, d, ',');)
    if (d.find_first_of("0123456789") != std::string::npos) shape.push_back(std::stoll(d));
  ffi::Tensor t = Empty(ffi::ShapeView(shape.data(), shape.size()), types.at(descr), DLDevice{kDLCPU, 0});
  if (start + Bytes(t) > npy.size()) throw std::runtime_error("the golden file is truncated");
  memcpy(t.data_ptr(), npy.data() + start, Bytes(t));
  return t;
}

// The arrays of an uncompressed .npz.
static std::map<std::string, ffi::Tensor> Arrays(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::string s((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  std::map<std::string, ffi::Tensor> found;
  for (size_t at = 0; at + 30 < s.size() && Little(s, at, 4) == 0x04034b50;) {
    uint64_t size = Little(s, at + 18, 4), name = Little(s, at + 26, 2), extra = Little(s, at + 28, 2);
    if (Little(s, at + 8, 2) != 0) throw std::runtime_error("the golden file is compressed");
    if (size == 0xffffffff) size = Little(s, at + 30 + name + 4 + 8, 8);
    size_t data = at + 30 + name + extra;
    if (name < 4 || data > s.size() || size > s.size() - data) throw std::runtime_error("the golden file is truncated");
    found.emplace(s.substr(at + 30, name - 4), Array(s.substr(data, size)));
    at = data + size;
  }
  return found;
}

static const ffi::Tensor& Golden(const std::map<std::string, ffi::Tensor>& arrays, const std::string& name) {
  auto found = arrays.find(name);
  if (found == arrays.end()) throw std::runtime_error("the golden file has no " + name);
  return found->second;
}

static double At(const ffi::Tensor& t, size_t i) {
  const void* data = t.data_ptr();
  if (t.dtype().code == kDLFloat && t.dtype().bits == 32) return static_cast<const float*>(data)[i];
  if (t.dtype().code == kDLInt && t.dtype().bits == 64) return static_cast<double>(static_cast<const int64_t*>(data)[i]);
  if (t.dtype().code == kDLInt && t.dtype().bits == 32) return static_cast<const int32_t*>(data)[i];
  if (t.dtype().code == kDLInt && t.dtype().bits == 8) return static_cast<const int8_t*>(data)[i];
  if (t.dtype().bits == 8) return static_cast<const uint8_t*>(data)[i];
  throw std::runtime_error("an output has a type that golden outputs do not have");
}

// The largest difference, and the largest golden value; the difference is infinite where a value is no number.
static std::pair<double, double> Difference(const ffi::Tensor& found, const ffi::Tensor& golden) {
  auto a = found.shape(), b = golden.shape();
  if (found.dtype() != golden.dtype() || !std::equal(a.begin(), a.end(), b.begin(), b.end()))
    throw std::runtime_error("an output has another shape or type than the golden one");
  double worst = 0, scale = 0;
  for (size_t i = 0, n = Bytes(golden) * 8 / golden.dtype().bits; i < n; ++i) {
    double p = At(found, i), q = At(golden, i), error = std::fabs(p - q);
    worst = std::max(worst, std::isnan(error) ? INFINITY : error);
    scale = std::max(scale, std::fabs(q));
  }
  return {worst, scale};
}

static void Load(const char* name, bool needed) {
  if (!dlopen(name, RTLD_NOW | RTLD_GLOBAL) && needed) throw std::runtime_error(dlerror());
}

static std::vector<double> Timed(const ffi::Function& run, const std::vector<ffi::AnyView>& args, DLDevice device,
                                 int rounds, ffi::Any* result) {
  ffi::Function sync = ffi::Function::GetGlobalRequired("runtime.Device_StreamSync");
  std::vector<double> ms;
  for (int i = -3; i < rounds; ++i) {
    auto start = std::chrono::steady_clock::now();
    run.CallPacked(ffi::PackedArgs(args.data(), args.size()), result);
    sync(device, static_cast<int64_t>(0));
    std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    if (i >= 0) ms.push_back(took.count());
  }
  std::sort(ms.begin(), ms.end());
  return ms;
}

static int Main(const std::string& folder, const std::string& place, int rounds) {
  Interface interface = ReadInterface(folder + "/interface.txt");
  if (!interface.libraries.count(place)) throw std::runtime_error("this bundle has no library for " + place);
  Load("libtvm_runtime.so", true);
  Load("libtvm_runtime_extra.so", false);
  if (place == "cuda") Load("libtvm_runtime_cuda.so", true);
  DLDevice cpu{kDLCPU, 0}, device{place == "cuda" ? kDLCUDA : kDLCPU, 0};
  auto arrays = Arrays(folder + "/golden.npz");
  ffi::Module library = ffi::Function::GetGlobalRequired("ffi.ModuleLoadFromFile")(
                            ffi::String(folder + "/" + interface.libraries.at(place))).cast<ffi::Module>();
  ffi::Module vm = library->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
  ffi::Function start = vm->GetFunction("vm_initialization").value();
  if (place == "cuda") start(2, 0, 2, 1, 0, 2);
  else start(1, 0, 2);
  std::vector<ffi::Tensor> inputs;
  for (const std::string& name : interface.inputs) inputs.push_back(Copied(Golden(arrays, "input:" + name), device));
  ffi::Any result;
  std::vector<ffi::AnyView> args(inputs.begin(), inputs.end());
  std::vector<double> ms = Timed(vm->GetFunction("main").value(), args, device, rounds, &result);
  auto found = result.cast<ffi::Array<ffi::Tensor>>();
  if (found.size() != interface.outputs.size()) throw std::runtime_error("another number of outputs than promised");
  bool equal = true;
  std::ostringstream rows, said;
  for (size_t i = 0; i < found.size(); ++i) {
    const std::string& name = interface.outputs[i];
    auto [worst, scale] = Difference(Copied(found[i], cpu), Golden(arrays, "output:" + name));
    equal = equal && worst <= interface.atol + interface.rtol * scale;
    rows << (i ? ", " : "") << '"' << name << "\": " << (std::isinf(worst) ? 1e308 : worst);
    said << (i ? ", " : "") << name << ' ' << worst;
  }
  std::ofstream out(folder + "/result.json");
  out << "{\n \"passed\": " << (equal ? "true" : "false") << ",\n \"device\": \"" << place
      << "\",\n \"largest_difference\": {" << rows.str() << "},\n \"tolerance\": {\"rtol\": " << interface.rtol
      << ", \"atol\": " << interface.atol << "},\n \"latency_ms\": {\"median\": " << ms[ms.size() / 2]
      << ", \"p90\": " << ms[ms.size() * 9 / 10] << ", \"least\": " << ms[0] << "},\n \"rounds\": " << rounds << "\n}\n";
  if (!out.flush()) throw std::runtime_error("cannot write " + folder + "/result.json");
  printf("%s: %s: largest differences: %s; median %.4g ms\n", equal ? "PASS" : "FAIL", place.c_str(),
         said.str().c_str(), ms[ms.size() / 2]);
  return equal ? 0 : 4;
}

int main(int argc, char** argv) {
  int rounds = argc > 3 ? atoi(argv[3]) : 50;
  if (argc < 2 || rounds < 1) return fprintf(stderr, "tvm_run FOLDER [cpu|cuda [ROUNDS]]\n"), 2;
  try {
    return Main(argv[1], argc > 2 ? argv[2] : "cpu", rounds);
  } catch (const std::exception& error) {
    std::string text = error.what();
    fprintf(stderr, "tvm_run: %s\n", text.substr(0, text.find('\n')).c_str());
    return 2;
  }
}
