"""Images copied into expert order, and their gradients with sums over tokens; interpreted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dexcore.kernels.expert_order as module
from assertions import assert_close
from dexcore.kernels.expert_order import gradient_rows, input_rows
from kernels.expert_rows import in_rows, in_slots, live, pads, plan_of, routings, rows_of, whole_tiles
from kernels.far_memory import Launch, far

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
THREE_IMAGES = torch.tensor([[2, 0], [0, 1], [2, 1]])  # of four experts, the last idle
NO_IMAGES = torch.empty(0, 2, dtype=torch.int64)
NAN = float("nan")


def images_of_slots(values, plan):
    """[S, ...] in flat order, of values [B, ...]."""
    return values.repeat_interleave(plan.top_k, 0)


def in_whole_rows(plan, of_slots):
    """`in_rows`, and zeros in the tiles that nobody has."""
    rows = in_rows(plan, of_slots)
    rows[live(plan) :] = 0
    return rows


def check_rows(rows, plan, of_images):
    """The tokens bit for bit, and zeros everywhere else."""
    assert rows.dtype == of_images.dtype
    assert torch.equal(rows, in_whole_rows(plan, images_of_slots(of_images, plan)))


def check_input(indices, experts, tokens, width, x_dtype, dtype, by_image, block_m=16):
    plan = plan_of(indices, experts, tokens, block_m)
    x, gates = torch.randn(len(indices), tokens, width).to(x_dtype), torch.rand(indices.shape)
    rows, row_gates, images = input_rows(x, gates, plan, dtype, by_image=by_image)
    check_rows(rows, plan, x.to(dtype))
    assert row_gates.dtype == torch.float32
    assert torch.equal(row_gates, in_whole_rows(plan, gates.view(-1, 1).expand(-1, tokens)))
    if by_image:
        assert torch.equal(images, whole_tiles(plan, x.to(dtype).view(-1, width)))
    else:
        assert images is None


def check_gradient(indices, experts, tokens, width, dtypes, dtype, *, with_grad_y=True, with_loss=True, block_m=16):
    plan = plan_of(indices, experts, tokens, block_m)
    batch = len(indices)
    grad_y, gradient = (torch.randn(batch, tokens, width).to(given) for given in dtypes)
    grad_loss = torch.tensor(3.0 * batch * tokens)  # as large as the other, after the mean
    given = {"grad_loss": grad_loss, "gradient": gradient} if with_loss else {}
    rows, sums = gradient_rows(grad_y if with_grad_y else None, plan, dtype, **given)
    parts = [grad_y.double()] if with_grad_y else []
    parts += [3 * gradient.double()] if with_loss else []
    dy = sum(parts[1:], parts[0])
    found = in_slots(plan, rows)
    assert rows.dtype == dtype
    assert_close(found, images_of_slots(dy, plan), plain=images_of_slots(dy.to(dtype), plan), name="dy")
    check_rows(rows, plan, found.unflatten(0, (batch, -1))[:, 0])  # an image's copies are alike; pads are zero
    # Of what was written, not of what was given.
    assert sums.dtype == torch.float32
    assert_close(sums, found.double().unflatten(0, (batch, -1))[:, 0].sum(1), bound=1e-6, name="sums")


@given(
    routings(), st.integers(1, 70), st.integers(1, 300), st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.booleans()
)
def test_images_are_copied_to_their_slots_rows(routing, tokens, width, x_dtype, dtype, by_image):
    check_input(*routing, tokens, width, x_dtype, dtype, by_image)


@given(
    routings(),
    st.integers(1, 70),
    st.integers(1, 300),
    st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    st.sampled_from(DTYPES),
    st.sampled_from([(True, True), (True, False), (False, True)]),
)
def test_gradients_are_added_copied_and_summed(routing, tokens, width, dtypes, dtype, parts):
    if len(routing[0]):
        check_gradient(*routing, tokens, width, dtypes, dtype, with_grad_y=parts[0], with_loss=parts[1])


@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_to_every_dtype(x_dtype, dtype):
    check_input(THREE_IMAGES, 4, 17, 130, x_dtype, dtype, True)
    check_gradient(THREE_IMAGES, 4, 17, 130, (x_dtype, torch.float32), dtype)


def test_float64_images_are_read_too():
    check_input(THREE_IMAGES, 4, 17, 20, torch.float64, torch.float32, True)


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 32, 33, 100])
@pytest.mark.parametrize("block_m", [16, 128])
def test_tokens_fill_tiles_or_leave_pads(tokens, block_m):
    check_input(THREE_IMAGES, 4, tokens, 20, torch.float32, torch.bfloat16, True, block_m)
    check_gradient(THREE_IMAGES, 4, tokens, 20, DTYPES[:2], torch.bfloat16, block_m=block_m)


@pytest.mark.parametrize("indices", [torch.full((5, 1), 3), torch.tensor([[1, 1], [2, 1]]), torch.tensor([[3, 1]])])
def test_one_expert_or_the_same_twice_or_one_image(indices):
    check_input(indices, 4, 7, 20, torch.float32, torch.float16, True)
    check_gradient(indices, 4, 7, 20, DTYPES[:2], torch.float16)


def test_without_images_there_is_nothing():
    check_input(NO_IMAGES, 4, 5, 20, torch.float32, torch.bfloat16, True)
    plan = plan_of(NO_IMAGES, 4, 5, 16)
    for loss in ({}, {"grad_loss": torch.ones(()), "gradient": torch.empty(0, 5, 20)}):
        rows, sums = gradient_rows(torch.empty(0, 5, 20), plan, torch.float16, **loss)
        assert rows.shape == sums.shape == (0, 20)


def test_rows_and_sums_keep_images_apart():
    plan = plan_of(THREE_IMAGES, 4, 40, 16)
    dy, gates = torch.randn(3, 40, 140), torch.rand(3, 2)
    clean, clean_sums = gradient_rows(dy, plan, torch.float32)
    dy[1] = float("inf")
    rows, sums = gradient_rows(dy, plan, torch.float32)
    of_others = rows_of(plan)[[0, 1, 4, 5]]
    assert torch.equal(rows[of_others], clean[of_others])
    assert (rows[rows_of(plan)[2:4]] == float("inf")).all()
    assert (rows[pads(plan)] == 0).all()
    assert torch.equal(sums[[0, 2]], clean_sums[[0, 2]])
    assert (sums[1] == float("inf")).all()
    assert (input_rows(dy, gates, plan, torch.float32, by_image=False).rows[pads(plan)] == 0).all()


def test_a_loss_that_is_nan_poisons_the_gradient_and_no_pad():
    plan = plan_of(THREE_IMAGES, 4, 5, 16)
    given = {"grad_loss": torch.tensor(NAN), "gradient": torch.zeros(3, 5, 20)}
    rows, sums = gradient_rows(torch.ones(3, 5, 20), plan, torch.float32, **given)
    assert in_slots(plan, rows).isnan().all()
    assert sums.isnan().all()
    assert (rows[pads(plan)] == 0).all()


def test_sums_are_of_the_rounded_gradient():
    """1 + 2^-9 is 1 in bf16: sums of what was given would show it."""
    plan = plan_of(torch.tensor([[0]]), 1, 64, 16)
    rows, sums = gradient_rows(torch.full((1, 64, 8), 1 + 2**-9), plan, torch.bfloat16)
    assert (rows[:64] == 1).all()
    assert (sums == 64).all()


def test_repeated_calls_are_bit_equal():
    plan = plan_of(THREE_IMAGES, 4, 40, 16)
    dy, gradient = torch.randn(2, 3, 40, 130)
    given = {"grad_loss": torch.tensor(2.0), "gradient": gradient}
    first, second = (gradient_rows(dy, plan, torch.bfloat16, **given) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


FAR = 2**26  # rows of 32 and more columns lie beyond 2^31 elements


def input_launch(by_image=True):
    """One image of four tokens on the second of two experts: programs 0, of the image, and 1 to 3, of pads."""
    plan = plan_of(torch.tensor([[1]]), 2, 4, 16)
    x, gates = torch.randn(1, 4, 32).half(), torch.rand(1, 1)
    return Launch(module, lambda: input_rows(x, gates, plan, torch.float16, by_image=by_image)), x, plan


def test_expert_order_may_have_more_than_two_to_the_31_elements(tmp_path):
    launch, x, _ = input_launch(by_image=False)
    rows = far(tmp_path / "rows", FAR + 16, 32)
    rows[FAR:] = 1
    changed = {"rows_ptr": rows, "row_gates_ptr": far(tmp_path / "gates", FAR + 16, dtype=torch.float32)}
    launch.run(0, **changed, first_rows_ptr=torch.tensor([FAR]).int())
    assert torch.equal(rows[FAR : FAR + 4], x[0])
    # The pads of the second expert, whose only tile this is, the last of all.
    tile_starts = torch.tensor([0, FAR // 16, FAR // 16 + 1]).int()
    tables = {"starts_ptr": torch.tensor([0, 0, 1]).int(), "tile_starts_ptr": tile_starts}
    launch.run(2, **changed, **tables, num_rows=FAR + 16)
    assert torch.equal(rows[FAR : FAR + 4], x[0])
    assert (rows[FAR + 4 :] == 0).all()


def test_images_may_have_more_than_two_to_the_31_elements(tmp_path):
    """The last of 2^24 + 1 images of four tokens, and the pads behind it."""
    launch, x, plan = input_launch()
    batch = FAR // 4 + 1
    source, images = far(tmp_path / "x", batch, 4, 32), far(tmp_path / "images", FAR + 16, 32)
    source[-1] = x[0]
    images[FAR:] = 1
    rows = torch.zeros(plan.rows, 32).half()
    changed = {"source_ptr": source, "images_ptr": images, "rows_ptr": rows, "batch": batch}
    changed |= {"first_rows_ptr": far(tmp_path / "first", batch, dtype=torch.int32)}
    changed |= {"gates_ptr": far(tmp_path / "gates", batch, dtype=torch.float32)}
    launch.run(batch - 1, **changed)
    launch.run(batch + 2, **changed)  # behind the programs of both experts
    assert torch.equal(rows[:4], x[0])
    assert torch.equal(images[FAR : FAR + 4], x[0])
    assert (images[FAR + 4 :] == 0).all()


def test_sums_and_gradients_may_have_more_than_two_to_the_31_elements(tmp_path):
    plan = plan_of(torch.tensor([[0]]), 1, 1, 16)
    dy = torch.randn(1, 1, 64).half()
    given = {"grad_loss": torch.ones(()), "gradient": dy}
    launch = Launch(module, lambda: gradient_rows(dy, plan, torch.float16, **given))
    batch = FAR
    gradient = far(tmp_path / "gradient", batch, 1, 64)
    gradient[-1] = dy[0]
    sums = far(tmp_path / "sums", batch, 64, dtype=torch.float32)
    rows = torch.zeros(plan.rows, 64).half()
    changed = {"source_ptr": gradient, "gradient_ptr": gradient, "sums_ptr": sums, "batch": batch}
    changed |= {"first_rows_ptr": far(tmp_path / "first", batch, dtype=torch.int32)}
    launch.run(batch - 1, **changed, rows_ptr=rows)
    assert torch.equal(rows[0], 2 * dy[0, 0])
    assert torch.equal(sums[-1], rows[0].float())
