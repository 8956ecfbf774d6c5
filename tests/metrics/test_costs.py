"""Where time goes: what belongs to which group, what is listed, and that nothing is counted twice."""

from __future__ import annotations

import pytest

from yarn_train.metrics import costs as made
from yarn_train.metrics.costs import ATTENTION, COMMUNICATION, COPIES, OPTIMIZER, OTHER, PRODUCTS, costs_of

E = made.Event

OPERATOR = "yarn_train::attention"
ADAM = ("Optimizer.step#AdamW.step",)
GEMM = "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_128x256_32x3_tn_align8>(Params)"
ADD = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, std::array<char*, 3>>(int)"
CAST = "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)>(int)"


@pytest.mark.parametrize(
    ("event", "group"),
    [
        (E("aten::_scaled_dot_product_flash_attention_for_cpu", 1.0, (OPERATOR,)), ATTENTION),
        (E("aten::bmm", 1.0, ("aten::matmul", OPERATOR)), ATTENTION),  # inside of it, whatever it is
        (E("void flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Traits>(Params)", 1.0), ATTENTION),
        (E("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3", 1.0), ATTENTION),
        (E("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", 1.0, ("yarn_train::ring",)), COMMUNICATION),
        (E("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", 1.0), COMMUNICATION),
        (E("gloo:all_reduce", 1.0), COMMUNICATION),
        (E("aten::_foreach_copy_", 1.0, ("fsdp::all_gather_copy_in",)), COMMUNICATION),
        (E("aten::mm", 1.0, ("aten::matmul", "aten::linear")), PRODUCTS),
        (E("mkldnn::_linear_pointwise", 1.0), PRODUCTS),
        (E(GEMM, 1.0, ("aten::mm",), "aten::mm"), PRODUCTS),
        (E("nvjet_tst_192x192_64x3_2x1_v_bz_coopB_TNN", 1.0, ("aten::mm",), "aten::mm"), PRODUCTS),
        (E("aten::_fused_adamw_", 1.0, ADAM), OPTIMIZER),
        (E("aten::copy_", 1.0, ADAM), OPTIMIZER),
        (E("aten::linalg_vector_norm", 1.0), OPTIMIZER),  # of the gradients
        (E("Memcpy HtoD (Pinned -> Device)", 1.0, ("aten::copy_",), "aten::copy_"), COPIES),
        (E(CAST, 1.0, ("aten::copy_",), "aten::copy_"), COPIES),
        (E("aten::copy_", 1.0, ("aten::_to_copy",)), COPIES),
        (E("triton_poi_fused__to_copy_mul_silu_4", 1.0), OTHER),
        (E(ADD, 1.0, ("aten::add",), "aten::add"), OTHER),
        (E("aten::logsumexp", 1.0, ("_ChunkedLoss",)), OTHER),
    ],
)
def test_groups(event: made.Event, group: str) -> None:
    assert made.group_of(event) == group


def test_kernels_are_named_by_what_launched_them() -> None:
    assert made.shown(E(ADD, 1.0, (), "aten::add")) == "aten::add: vectorized_elementwise_kernel"
    assert made.shown(E(GEMM, 1.0, (), "aten::mm")) == "aten::mm: Kernel2"
    assert made.shown(E("aten::mm", 1.0, shapes="[4, 8] x [8, 2]")) == "aten::mm [4, 8] x [8, 2]"
    assert len(made.shown(E("x" * 200, 1.0))) == 72


def test_ten_largest_and_all_above_three_per_cent_per_step() -> None:
    events = [E(f"op{number:02d}", 0.04) for number in range(12)] * 2 + [E("small", 0.002)] * 3
    costs = costs_of(events, steps=2, seconds=2.0, rest=("idle", 1.034))
    assert costs.step_seconds == 1.0
    assert [cost.name for cost in costs.largest()] == [f"op{number:02d}" for number in range(12)]
    first, last = costs.costs[0], costs.costs[-1]
    assert (first.seconds, first.share, first.calls) == pytest.approx((0.04, 0.04, 1.0))
    assert (last.name, last.calls) == ("small", 1.5)
    assert last.seconds == pytest.approx(0.003)
    groups = costs.groups()
    assert [name for name, _, _ in groups] == ["idle", OTHER]
    assert sum(share for _, _, share in groups) == pytest.approx(1.0)
    few = costs_of([E(f"op{number:02d}", 0.001 * number) for number in range(14)], 1, 1.0, ("idle", 0.5))
    assert [cost.name for cost in few.largest()] == [f"op{number:02d}" for number in range(13, 3, -1)]


def test_the_same_numbers_on_a_page_and_in_a_terminal() -> None:
    costs = costs_of([E("aten::mm", 0.5, calls=4), E("a|b", 0.1)], 2, 1.0, ("idle", 0.4))
    page, lines = made.markdown("a title", costs), made.text(costs)
    assert page.startswith("# a title\n\n| what | ms per step | share |\n| --- | ---: | ---: |\n")
    assert "| aten::mm | 250.00 | 50.0% | 2 | matrix products |\n" in page
    assert "| a/b | 50.00 | 10.0% | 0.5 | other |\n" in page
    assert "| idle | 200.00 | 40.0% |\n" in page
    assert "| a step, profiled | 500.00 | 100.0% |\n" in page
    assert "  aten::mm            250.00  50.0%               2  matrix products" in lines
