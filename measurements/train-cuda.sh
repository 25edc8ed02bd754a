#!/usr/bin/env bash
# Gradients on the GPU (first run ever): cases against the oracle, large calls against torch, timings, repeats, NaN.
# In a checkout of main after the build of common.md (build/, MSA_CUDA=ON). About 120 s of GPU.
set -u
B=build; M=$B/tools/msa/msa
grep -hE "op=(sparse_backward|dense_backward|index_loss|sparse_backward.*)" tests/cases/emulated.txt tests/cases/smoke.txt tests/cases/all.txt > /tmp/grad-cases.txt
cat >> /tmp/grad-cases.txt <<'C'
op=sparse_backward heads=64/4 topk=16 lens=500:3000 dlse=1
op=sparse_backward heads=16/1 topk=8 lens=900:900 regime=drift grad_dtype=f32
op=dense_backward heads=16/1 lens=700:700 hostile=none|nan
op=index_loss heads=64/4 index_heads_k=1 topk=16 lens=500:3000
C
for isa in sm90 mma; do
  sup=tests/support/cuda.txt; [ $isa = mma ] && sup=tests/support/cuda-mma.txt
  echo "== verify $isa"; timeout 50 $M verify --backend cuda --isa $isa --support $sup /tmp/grad-cases.txt 2>&1 | tail -12
done
mkdir -p /tmp/tg; cat > /tmp/tg/main.cu <<'C'
#include <cuda_runtime.h>
#include <cuda_bf16.h>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <vector>
#include "msa/attention.h"
using namespace msa;
using i64 = std::int64_t;
#define CK(x) do { cudaError_t e = (x); if (e != cudaSuccess) { printf("%s: %s\n", #x, cudaGetErrorString(e)); exit(1); } } while (0)
static Device dev{DeviceType::Cuda, 0};
struct Buf { void* p = nullptr; size_t n = 0; void make(size_t b) { n = b; CK(cudaMalloc(&p, b)); } ~Buf() { if (p) cudaFree(p); } };
__global__ void fill(__nv_bfloat16* p, size_t n, unsigned seed, float scale) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x) {
    float s = 0; unsigned long long h = i * 0x9E3779B97F4A7C15ull + seed;
    for (int k = 0; k < 4; ++k) { h ^= h >> 33; h *= 0xff51afd7ed558ccdull; h ^= h >> 29; s += (h >> 40) * (1.0f / (1 << 24)) - 0.5f; }
    p[i] = __float2bfloat16(s * 1.7320508f * scale);
  }
}
static Tensor bf(Buf& b, std::vector<i64> shape) {
  size_t n = 2; for (i64 s : shape) n *= s; if (!b.p) b.make(n);
  return shape.size() == 3 ? make_tensor(b.p, DType::BF16, {shape[0], shape[1], shape[2]}, dev) : Tensor{};
}
static Tensor f32(Buf& b, i64 x, i64 y) { if (!b.p) b.make(4 * x * y); return make_tensor(b.p, DType::F32, {x, y}, dev); }
template <class Args> struct Call {
  Args args; Plan plan; Buf ws; Workspace w{};
  Call(const Args& a, const Settings& s) : args(a) { plan = make_plan(problem_of(args, s)); ws.make(plan.workspace_bytes() + 256); w = {ws.p, plan.workspace_bytes()}; }
  void go() { run(plan, args, w, Stream{}); }
  double ms(int n) { go(); CK(cudaDeviceSynchronize()); std::vector<float> t; cudaEvent_t a, b; cudaEventCreate(&a); cudaEventCreate(&b);
    for (int i = 0; i < n; ++i) { cudaEventRecord(a); go(); cudaEventRecord(b); CK(cudaDeviceSynchronize()); float x; cudaEventElapsedTime(&x, a, b); t.push_back(x); }
    std::sort(t.begin(), t.end()); return t[t.size() / 2]; }
};
static std::vector<unsigned char> host(const Buf& b) { std::vector<unsigned char> v(b.n); CK(cudaMemcpy(v.data(), b.p, b.n, cudaMemcpyDeviceToHost)); return v; }
static void dump(const std::string& f, const Buf& b) { auto v = host(b); std::ofstream(f, std::ios::binary).write((char*)v.data(), v.size()); }
static bool nans(const Buf& b) { auto v = host(b); auto* p = (unsigned short*)v.data(); for (size_t i = 0; i < v.size() / 2; ++i) if ((p[i] & 0x7f80) == 0x7f80) return true; return false; }
int main(int argc, char** argv) {
  const i64 T = atoll(argv[1]), Hq = atoll(argv[2]), Hkv = atoll(argv[3]); const std::string kind = argv[4]; const bool check = argc > 5;
  const bool dense = kind == "dense"; const i64 D = 128, K = 16; const int n = T > 40000 ? 2 : 5;
  Buf q, k, v, o, l, go, dq, dk, dv, iq, ik, ls, diq, dik, ids, cu, sk;
  Tensor tq = bf(q, {T, Hq, D}), tk = bf(k, {T, Hkv, D}), tv = bf(v, {T, Hkv, D}), to = bf(o, {T, Hq, D}), tg = bf(go, {T, Hq, D});
  Tensor tdq = bf(dq, {T, Hq, D}), tdk = bf(dk, {T, Hkv, D}), tdv = bf(dv, {T, Hkv, D}), tiq = bf(iq, {T, Hkv, D}), tik = bf(ik, {T, 1, D});
  Tensor tdiq = bf(diq, {T, Hkv, D}), tdik = bf(dik, {T, 1, D}), tl = f32(l, T, Hq), tls = f32(ls, T, Hkv);
  unsigned s = 1; for (Buf* b : {&q, &k, &v, &go, &iq, &ik}) fill<<<1024, 256>>>((__nv_bfloat16*)b->p, b->n / 2, s++ * 7919, 1.0f);
  std::vector<int> hid(T * Hkv * K, -1); std::mt19937 r(5); std::vector<std::vector<int>> keep(Hkv);
  for (i64 t = 0; t < T && !dense; ++t) for (i64 h = 0; h < Hkv; ++h) {
    const int own = t / 128, want = std::min<i64>(K, own + 1); auto& set = keep[h]; if (kind == "random") set.clear();
    set.erase(std::remove(set.begin(), set.end(), own), set.end()); if (kind != "random" && set.size() > 4 && r() % 3 == 0) set.erase(set.begin() + r() % set.size());
    while ((int)set.size() > want - 1) set.erase(set.begin());
    while ((int)set.size() < want - 1) { int b = r() % own; if (std::find(set.begin(), set.end(), b) == set.end()) set.push_back(b); }
    int* to_ = &hid[(t * Hkv + h) * K]; to_[0] = own; for (size_t i = 0; i < set.size(); ++i) to_[1 + i] = set[i];
  }
  ids.make(hid.size() * 4); CK(cudaMemcpy(ids.p, hid.data(), ids.n, cudaMemcpyHostToDevice));
  Tensor tid = make_tensor(ids.p, DType::I32, {T, Hkv, K}, dev);
  int hc[2] = {0, (int)T}; cu.make(8); CK(cudaMemcpy(cu.p, hc, 8, cudaMemcpyHostToDevice)); sk.make(4); CK(cudaMemcpy(sk.p, hc + 1, 4, cudaMemcpyHostToDevice));
  Batch batch; batch.cu_seqlens_q = make_tensor(cu.p, DType::I32, {2}, dev); batch.seqlens_k = make_tensor(sk.p, DType::I32, {1}, dev);
  Settings set; set.causal = true; set.block_size = 128; set.max_seqlen_q = T; set.max_seqlen_k = T;
  double pairs = 0; for (i64 t = 0; t < T; ++t) pairs += dense ? t + 1 : std::min<i64>(K - 1, t / 128) * 128 + t % 128 + 1;
  const double tf = pairs * 10 * Hq * D * 1e-12;
  double ms_f, ms_b; size_t ws; std::vector<unsigned char> first;
  auto rest = [&](auto& f, auto& b) { ms_f = f.ms(n); ms_b = b.ms(n); ws = b.plan.workspace_bytes(); first = host(dq); auto fk = host(dk), fv = host(dv); bool same = true;
    for (int i = 0; i < (T > 40000 ? 2 : 20); ++i) { b.go(); CK(cudaDeviceSynchronize()); same &= host(dq) == first && host(dk) == fk && host(dv) == fv; }
    printf("%s %lld %lld/%lld: forward %.2f ms, backward %.2f ms = %.0f TFLOP/s, workspace %.0f MB, same bits %d, nan %d\n", kind.c_str(), (long long)T, (long long)Hq, (long long)Hkv, ms_f, ms_b, tf / ms_b * 1e3, ws / 1e6, same, nans(dq) || nans(dk) || nans(dv)); fflush(stdout);
    b.args.dk = b.args.dv = {}; printf("  dq alone %.2f ms", b.ms(n)); b.args.dk = tdk; b.args.dv = tdv; b.args.dq = {}; printf(", dk and dv alone %.2f ms\n", b.ms(n)); b.args.dq = tdq; b.go(); CK(cudaDeviceSynchronize()); };
  if (dense) { DenseAttentionArgs fa; fa.q = tq; fa.k = tk; fa.v = tv; fa.batch = batch; fa.out = to; fa.lse = tl; Call f(fa, set);
    DenseAttentionBackwardArgs a; a.q = tq; a.k = tk; a.v = tv; a.out = to; a.lse = tl; a.dout = tg; a.batch = batch; a.dq = tdq; a.dk = tdk; a.dv = tdv; Call b(a, set); rest(f, b);
  } else { SparseAttentionArgs fa; fa.q = tq; fa.k = tk; fa.v = tv; fa.block_ids = tid; fa.batch = batch; fa.out = to; fa.lse = tl; Call f(fa, set);
    SparseAttentionBackwardArgs a; a.q = tq; a.k = tk; a.v = tv; a.block_ids = tid; a.out = to; a.lse = tl; a.dout = tg; a.batch = batch; a.dq = tdq; a.dk = tdk; a.dv = tdv; Call b(a, set); rest(f, b); }
  IndexLossArgs a; a.q = tq; a.k = tk; a.lse = tl; a.index_q = tiq; a.index_k = tik; if (!dense) a.block_ids = tid; a.batch = batch; a.loss = tls; a.d_index_q = tdiq; a.d_index_k = tdik;
  Call c(a, set); const double ms_i = c.ms(n); auto x = host(diq), y = host(dik); bool same = true; for (int i = 0; i < 3; ++i) { c.go(); CK(cudaDeviceSynchronize()); same &= host(diq) == x && host(dik) == y; }
  printf("  index_loss %.2f ms = %.0f TFLOP/s, workspace %.0f MB, same bits %d, nan %d\n", ms_i, pairs * 2 * (Hq * D + 3 * Hkv * D) * 1e-9 / ms_i, c.plan.workspace_bytes() / 1e6, same, nans(diq) || nans(dik));
  if (check) { const std::pair<const char*, Buf*> all[] = {{"q", &q}, {"k", &k}, {"v", &v}, {"go", &go}, {"dq", &dq}, {"dk", &dk}, {"dv", &dv}, {"ids", &ids}, {"iq", &iq}, {"ik", &ik}, {"ls", &ls}, {"diq", &diq}, {"dik", &dik}}; for (auto& [name, b] : all) dump(std::string("/tmp/tg/") + name, *b); }
}
C
cat > /tmp/tg/check.py <<'C'
import sys, torch
T, Hq, Hkv, kind = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
ld = lambda n, dt, *s: torch.frombuffer(bytearray(open(f"/tmp/tg/{n}", "rb").read()), dtype=dt).view(*s).cuda()
b = torch.bfloat16; G = Hq // Hkv
q, k, v, go = (ld(n, b, T, h, 128).float().requires_grad_() for n, h in (("q", Hq), ("k", Hkv), ("v", Hkv), ("go", Hq)))
iq, ik = (ld(n, b, T, h, 128).float().requires_grad_() for n, h in (("iq", Hkv), ("ik", 1)))
pos = torch.arange(T, device="cuda"); seen = pos[:, None] >= pos[None]
if kind != "dense":
    ids = ld("ids", torch.int32, T, Hkv, 16).long(); m = torch.zeros(T, Hkv, T // 128 + 2, dtype=torch.bool, device="cuda")
    m.scatter_(2, torch.where(ids < 0, T // 128 + 1, ids), True); m = m[..., :T // 128 + 1]
def mask(h): return seen if kind == "dense" else seen & m[:, h].repeat_interleave(128, 1)[:, :T]
loss = torch.zeros((), device="cuda"); kl = []
for h in range(Hkv):
    P = 0
    for g in range(G):
        s = (q[:, h * G + g] @ k[:, h].T) * 128 ** -0.5
        p = torch.softmax(s.masked_fill(~mask(h), float("-inf")), 1); P = P + p.detach() / G
        loss = loss + ((p @ v[:, h]) * go[:, h * G + g].detach()).sum()
    z = torch.log_softmax(((iq[:, h] @ ik[:, 0].T) * 128 ** -0.5).masked_fill(~mask(h), float("-inf")), 1)
    kl.append(torch.where(P > 0, P * (torch.log(P.clamp_min(1e-38)) - z), 0.0).sum(1))
loss.backward(); kl = torch.stack(kl, 1); kl.sum().backward()
for n, want in (("dq", q.grad), ("dk", k.grad), ("dv", v.grad), ("diq", iq.grad), ("dik", ik.grad)):
    got = ld(n, b, *want.shape).float(); e = (got - want)
    print(f"  {n}: relative error {e.norm() / want.norm():.2e}, worst row {(e.norm(dim=-1) / want.norm(dim=-1).clamp_min(1e-6)).max():.2e}")
got = ld("ls", torch.float32, T, Hkv); print(f"  loss: largest error {(got - kl).abs().max():.2e}")
C
nvcc -arch=sm_90 -std=c++20 -O2 -Iinclude -o /tmp/tg/train /tmp/tg/main.cu -L$B/src -lmsa -Xlinker -rpath,$PWD/$B/src -Xcompiler -fopenmp 2>&1 | grep -E "error" | head
for k in dense drift random; do echo "== against torch, 2K $k"; timeout 40 /tmp/tg/train 2048 16 2 $k check && timeout 60 python3 /tmp/tg/check.py 2048 16 2 $k; done
for t in 8192 32768 131072; do for k in drift random; do timeout 60 /tmp/tg/train $t 64 4 $k; done; done
timeout 30 /tmp/tg/train 8192 64 4 dense; timeout 60 /tmp/tg/train 32768 64 4 dense
echo "== cuDNN forward + backward"; timeout 40 python3 - <<'C'
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
for n in (8192, 32768):
    q, k, v = (torch.randn(1, h, n, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True) for h in (64, 4, 4)); times = []
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        for _ in range(4):
            e = [torch.cuda.Event(enable_timing=True) for _ in range(3)]; e[0].record()
            o = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True); e[1].record()
            o.backward(o.detach()); e[2].record(); torch.cuda.synchronize(); times.append((e[0].elapsed_time(e[1]), e[1].elapsed_time(e[2])))
    print(n, "forward, backward ms:", min(times[1:]))
C
echo "== profile"; timeout 60 ncu --set basic --section WarpStateStats --section MemoryWorkloadAnalysis -k regex:"kernel" -c 60 --launch-skip 0 /tmp/tg/train 8192 64 4 drift 2>/dev/null | grep -E "^  [a-z].*Context|Duration|Registers Per|Pipe|Mem Busy|Max Bandwidth|Achieved Occ" | head -80
