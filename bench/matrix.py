"""What `bench.resources` compiles ahead of time, and what it demands of the result.

An entry is one call of one launcher, written as the words that `bench.compile_entry` understands:

    launcher architecture precision shape options...        expert_up sm_90 bf16 768x3072 gelu z wa director

The layer is the paper's: 224 images of 65 tokens, R 8 (256 with "many"), k 2, with D 768 and H 3072, or ViT-T's D 192
and H 768, or SO400M's D 1152 and H 4304, no whole number of the products' steps, or one whose rows are not aligned. A
test holds the entries to what a layer's step under autocast launches.
"""

from typing import Any

from dexcore.kernels.configs import SHARED_MEMORY

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
VIT_B, VIT_T, SO400M, UNALIGNED = "768x3072", "192x768", "1152x4304", "1001x3001"

# A stack is a spill, unless nothing was measured there to say that the kernel can do without.
NO_STACK = ("sm_80", "sm_90")
# What a dot product of half-precision operands must become. TF32 may be any of them.
TENSOR_INSTRUCTION = {"sm_80": "mma.sync", "sm_90": "wgmma", "sm_100": "tcgen05", "gfx942": "v_mfma"}

# What a training step launches, with keep "both": all of it, and nothing else.
GEMMS = (
    "expert_up gelu z wa director",
    "expert_down director",
    "expert_dact gelu",
    "expert_dx",
    "expert_wgrad",
)
# Their code depends on D ...
BY_WIDTH = (
    "input_rows director",
    "mix_align_forward kd gradient",
    "gradient_rows align",
    "gate_and_bias_gradients",
    "sum_slots cls",
)
# ... and theirs does not.
OTHERS = ("group_ema",)
# They do not know the compute dtype: the router reads the layer's input.
ROUTING = ("route_forward cls keep", "route_gradients")
COUNTERS = ("make_plan balance", "expert_load")
# Without the plan, whose one program then spills some registers.
OF_MANY = ("route_forward cls keep many", "route_gradients many")
# On parameters, which are float32 in training.
ON_PARAMETERS = ("group_ema",)

# What half-precision copies of parameters take: whether a step casts them or group EMA has written them.
COPIES = ("cast_all", "group_ema copies")

# The other keep-levels, the parts by themselves, the other kinds, once.
VARIANTS = (
    "expert_up gelu wa director",
    "expert_up gelu wa",
    "expert_up gelu z",
    "expert_up gelu z wa",
    "expert_up gelu z wa director no-bias",
    "expert_down",
    "expert_down director no-bias",
    "expert_dact gelu wa",
    "make_plan",
    "route_forward cls",
    "route_forward cls noise keep",
    "route_forward cls half-x keep",
    "route_forward mean noise keep",
    "route_backward cls",
    "route_backward cls half-x",
    "route_backward mean",
    "mix_align_forward kd",
    "mix_align_forward cosine gradient",
    "mix_align_forward mse gradient",
    "align_forward kd gradient",
    "align_backward",
    "sum_slots",
    "sum_slots half-x",
    "sum_slots cls half-x",
    "sum_slots mean",
    "input_rows",
    "input_rows half-x director",
    "gradient_rows",
    "expert_wgrad no-bias",
    "gate_and_bias_gradients no-bias",
    "group_ema unaligned",
)
ACTIVATIONS = ("gelu_tanh", "quick_gelu", "relu", "silu")
# These have more pre-activations, and so another first layer.
GATED = (
    "expert_up swiglu z wa director",
    "expert_dact swiglu",
    "expert_dx swiglu",
    "expert_wgrad swiglu",
)


def entries() -> list[str]:
    """All, in the order of the table."""
    found = []

    def add(call: str, architecture: str, precision: str, shape: str) -> None:
        launcher, *options = call.split()
        found.append(" ".join([launcher, architecture, precision, shape, *options]))

    for architecture in ARCHITECTURES:
        for call in GEMMS + BY_WIDTH + ROUTING:
            add(call, architecture, "bf16", VIT_B)
            add(call, architecture, "bf16", VIT_T)
        for call in OTHERS + COUNTERS + COPIES:
            add(call, architecture, "bf16", VIT_B)
        for call in ON_PARAMETERS:
            add(call, architecture, "fp32-ieee", VIT_B)
    for call in GEMMS + BY_WIDTH + OTHERS + COPIES:
        add(call, "sm_90", "fp16", VIT_B)
    for call in GEMMS + BY_WIDTH + tuple(call for call in OTHERS if call not in ON_PARAMETERS):
        add(call, "sm_90", "fp32-ieee", VIT_B)
    for call in GEMMS:
        add(call, "sm_80", "fp32-ieee", VIT_B)
        for architecture in NO_STACK:
            add(call, architecture, "bf16", SO400M)
            add(call, architecture, "fp32-tf32", VIT_B)
            add(call, architecture, "fp32-tf32x3", VIT_B)
            add(call, architecture, "bf16", UNALIGNED)
            add(call, architecture, "fp32-ieee", UNALIGNED)
    for call in OF_MANY:
        for architecture in NO_STACK:
            add(call, architecture, "bf16", VIT_B)
    for call in VARIANTS:
        add(call, "sm_90", "bf16", VIT_B)
    for activation in ACTIVATIONS:
        add(f"expert_up {activation} z wa director", "sm_90", "bf16", VIT_B)
        add(f"expert_dact {activation}", "sm_90", "bf16", VIT_B)
    for call in GATED:
        for architecture in NO_STACK:
            add(call, architecture, "bf16", VIT_B)
            add(call, architecture, "fp32-tf32", VIT_B)
    return found


# Two programs of these share a multiprocessor where operands have descriptors, so that one's epilogue runs beside the
# other's dot products: of an H100's 65,536 registers and 228 KiB of shared memory, 1 KiB a program of it Triton's.
IN_PAIRS, REGISTERS_OF_TWO, SHARED_OF_TWO = ("expert_up", "expert_dact"), 128, 113 * 1024


def is_as_committed(found: list[dict[str, Any]], committed: list[dict[str, Any]]) -> bool:
    """Whether an entry's kernels are as a table has them; what it was not told when it was written may differ."""
    return len(found) == len(committed) and all(
        {key: record.get(key) for key in known} == known for record, known in zip(found, committed, strict=True)
    )


def broken_rules(entry: str, record: dict[str, Any]) -> list[str]:
    """What is wrong with a kernel of an entry."""
    launcher, architecture, entry_precision, shape, *_ = entry.split()
    precision = entry_precision.partition("-")[2] or "ieee"  # under autocast the router's products stay IEEE
    allowed = {"bf16", "f16", precision}
    if launcher == "expert_wgrad" and precision in record["dots"]:
        allowed.add("ieee")  # the first bias's gradient, which no precision may touch
    found = [
        f"a dot of {operands}, where float32 is {precision}" for operands in record["dots"] if operands not in allowed
    ]
    found += [f"{how} truncates" for how in record.get("conversions", ()) if ".rz." in how or how == "rtz"]
    if architecture in NO_STACK:
        found += [f"{what} {record[what]}" for what in ("stack", "spills") if record[what]]
    limit = SHARED_MEMORY[architecture]
    if record["shared"] > limit:
        found.append(f"{record['shared']} bytes of shared memory, {limit} allowed")
    in_pairs = launcher in IN_PAIRS and architecture == "sm_90" and shape in (VIT_B, VIT_T)  # by descriptors
    if in_pairs and entry_precision in ("bf16", "fp16"):
        found += [
            f"{record[what]} {name}, {most} for two programs at once"
            for what, name, most in (
                ("registers", "registers", REGISTERS_OF_TWO),
                ("shared", "bytes of shared memory", SHARED_OF_TWO),
            )
            if record[what] > most
        ]
    own, seen = TENSOR_INSTRUCTION[architecture], record["instructions"]
    for operands in record["dots"]:
        if operands in ("bf16", "f16") and own not in seen:
            found.append(f"a dot of {operands} without {own}")
        elif operands.startswith("tf32") and not seen:
            found.append(f"a dot of {operands} without a tensor-core instruction")
    # AMD's matrix cores multiply IEEE float32 too.
    if record["dots"] in ([], ["ieee"]) and seen and own != "v_mfma":
        found.append(f"{', '.join(seen)} though nothing multiplies in less than float32")
    return found
