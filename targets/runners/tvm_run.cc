// Run model.so on the golden inputs and compare its outputs: tvm_run FOLDER [GOLDEN.npz]. Exit 0 equal, 1 not, 2 cannot run.
// FOLDER holds model.so and interface.txt (a line "input NAME" or "output NAME" each); the runtime's libraries are found
// by LD_LIBRARY_PATH.
#include <dlfcn.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

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
#include <vector>

namespace ffi = tvm::ffi;

struct Held {
  static size_t Bytes(DLTensor* t) {
    size_t n = (t->dtype.bits + 7) / 8;
    for (int i = 0; i < t->ndim; ++i) n *= t->shape[i];
    return n;
  }
  void AllocData(DLTensor* t) { t->data = aligned_alloc(64, (Bytes(t) + 63) / 64 * 64); }
  void FreeData(DLTensor* t) { free(t->data); }
};

static uint64_t Little(const std::string& s, size_t at, int bytes) {
  if (at + bytes > s.size()) throw std::runtime_error("the golden file is truncated");
  uint64_t v = 0;
  for (int i = bytes; i-- > 0;) v = v << 8 | static_cast<unsigned char>(s[at + i]);
  return v;
}

static ffi::Tensor Array(const std::string& npy) {
  size_t width = npy[6] == 1 ? 2 : 4, start = 8 + width + Little(npy, 8, width);
  std::string head = npy.substr(8 + width, start - 8 - width);
  std::string descr = head.substr(head.find("'descr': '") + 10, 3);
  std::map<std::string, DLDataType> types{{"<f4", {kDLFloat, 32, 1}}, {"<i8", {kDLInt, 64, 1}}, {"<i4", {kDLInt, 32, 1}},
                                          {"|i1", {kDLInt, 8, 1}},    {"|u1", {kDLUInt, 8, 1}}, {"|b1", {kDLBool, 8, 1}}};
  if (!types.count(descr)) throw std::runtime_error("an array of type " + descr);
  size_t open = head.find("'shape': (") + 10;
  std::stringstream list(head.substr(open, head.find(')', open) - open));
  std::vector<int64_t> shape;
  for (std::string d; std::getline(list, d, ',');)
    if (d.find_first_of("0123456789") != std::string::npos) shape.push_back(std::stoll(d));
  ffi::Tensor t =
      ffi::Tensor::FromNDAlloc(Held(), ffi::ShapeView(shape.data(), shape.size()), types[descr], DLDevice{kDLCPU, 0});
  size_t bytes = Held::Bytes(const_cast<DLTensor*>(t.GetDLTensorPtr()));
  if (start + bytes > npy.size()) throw std::runtime_error("the golden file is truncated");
  memcpy(t.data_ptr(), npy.data() + start, bytes);
  return t;
}

static std::map<std::string, ffi::Tensor> Arrays(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::string s((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  std::map<std::string, ffi::Tensor> found;
  for (size_t at = 0; at + 30 < s.size() && Little(s, at, 4) == 0x04034b50;) {
    uint64_t size = Little(s, at + 18, 4), name = Little(s, at + 26, 2), extra = Little(s, at + 28, 2);
    if (Little(s, at + 8, 2) != 0) throw std::runtime_error("the golden file is compressed");
    if (size == 0xffffffff) size = Little(s, at + 30 + name + 4 + 8, 8);
    std::string key = s.substr(at + 30, name);
    size_t data = at + 30 + name + extra;
    found.emplace(key.substr(0, key.size() - 4), Array(s.substr(data, size)));
    at = data + size;
  }
  return found;
}

static double Worst(const ffi::Tensor& a, const ffi::Tensor& b) {
  DLTensor *x = const_cast<DLTensor*>(a.GetDLTensorPtr()), *y = const_cast<DLTensor*>(b.GetDLTensorPtr());
  if (Held::Bytes(x) != Held::Bytes(y)) throw std::runtime_error("an output has another size than the golden one");
  if (x->dtype.code != kDLFloat) return memcmp(x->data, y->data, Held::Bytes(x)) ? INFINITY : 0;
  double worst = 0;
  for (size_t i = 0; i < Held::Bytes(x) / 4; ++i) {
    double p = static_cast<float*>(x->data)[i], q = static_cast<float*>(y->data)[i];
    double error = std::fabs(p - q) / (1e-4 + 1e-4 * std::fabs(q));
    if (!(error <= worst)) worst = error;
  }
  return worst;
}

static int Main(int argc, char** argv) {
  std::string folder = argv[1], golden = argc > 2 ? argv[2] : folder + "/golden.npz";
  for (const char* name : {"libtvm_runtime.so", "libtvm_runtime_extra.so"})
    if (!dlopen(name, RTLD_NOW | RTLD_GLOBAL) && name[14] == '.') throw std::runtime_error(dlerror());
  auto arrays = Arrays(golden);
  std::ifstream interface(folder + "/interface.txt");
  std::vector<std::string> outputs;
  std::vector<ffi::Tensor> inputs;
  for (std::string kind, name; interface >> kind >> name;) {
    if (!arrays.count(kind + ":" + name)) throw std::runtime_error(golden + " has no " + kind + ":" + name);
    if (kind == "input") inputs.push_back(arrays.at("input:" + name));
    else outputs.push_back(name);
  }
  ffi::Module library = ffi::Module::LoadFromFile(folder + "/model.so");
  ffi::Module vm = library->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
  vm->GetFunction("vm_initialization").value()(1, 0, 2);
  ffi::Function run = vm->GetFunction("main").value();
  std::vector<ffi::AnyView> args(inputs.begin(), inputs.end());
  ffi::Any result;
  double ms = 0;
  for (int i = 0; i < 2; ++i) {
    auto start = std::chrono::steady_clock::now();
    run.CallPacked(ffi::PackedArgs(args.data(), args.size()), &result);
    ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  }
  auto found = result.cast<ffi::Array<ffi::Tensor>>();
  bool equal = found.size() == outputs.size();
  for (size_t i = 0; equal && i < outputs.size(); ++i) {
    double worst = Worst(found[i], arrays.at("output:" + outputs[i]));
    printf("%s: %.3g of the tolerance\n", outputs[i].c_str(), worst);
    equal = worst <= 1;
  }
  printf("%s, %.3f ms\n", equal ? "equal" : "NOT EQUAL", ms);
  return equal ? 0 : 1;
}

int main(int argc, char** argv) {
  if (argc < 2) return fprintf(stderr, "tvm_run FOLDER [GOLDEN.npz]\n"), 2;
  try {
    return Main(argc, argv);
  } catch (const std::exception& error) {
    fprintf(stderr, "tvm_run: %s\n", error.what());
    return 2;
  }
}
