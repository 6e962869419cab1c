"""What a compiled kernel's texts say: Triton's own (TTIR), NVIDIA's PTX and SASS, AMD's assembly."""

import re

# By name, and as the assembly has them.
TENSOR_INSTRUCTIONS = {
    "mma.sync": "mma.sync",
    "wgmma": "wgmma.mma_async",
    "tcgen05": "tcgen05.mma",
    "v_mfma": "v_mfma",
}
_MULTIPLIES = re.compile(r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma|fma\.|\w*GMMA|HMMA|FFMA)")
_PTX_INSTRUCTION = re.compile(r"(?:@!?%p\d+\s+)?[a-z][\w.:]*(?:\s.*)?;$")
_PTX_BRANCH = re.compile(r"\bbra(?:\.uni)?\s+(\$\w+);")
_SASS_INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+([^;]*);")
_SASS_BRANCH = re.compile(r"\bBRA\b.*\b0x([0-9a-f]+)")

Loop = tuple[int, int]  # the numbers of its first instruction and of the branch back


def dots(ttir: str) -> list[str]:
    """What the kernel's dot products multiply: "bf16", "f16", or for float32 "ieee", "tf32", "tf32x3"."""
    found = set()
    for line in ttir.splitlines():
        if "tt.dot " in line:
            (operand,) = re.findall(r": tensor<[\dx]*x(\w+)>", line)[:1]
            precision = re.search(r"inputPrecision = (\w+)", line)
            found.add((precision[1] if precision else "ieee") if operand == "f32" else operand)
    return sorted(found)


def conversions(ttir: str, ptx: str | None) -> list[str]:
    """By which instructions float32 becomes a half precision; where there is no PTX, what TTIR says of them."""
    if ptx is not None:
        return sorted(set(re.findall(r"\bcvt\.[\w.]*\.(?:bf16|f16)(?:x2)?\.f32\b", ptx)))
    found = re.findall(r"arith\.truncf|tt\.fp_to_fp .*?rounding = \w+", ttir)
    return sorted({"arith.truncf" if text == "arith.truncf" else text.rpartition(" ")[2] for text in found})


def ptx_loop(ptx: str) -> int:
    """Instructions of the innermost loop that multiplies most, without the branch back; 0 without a loop."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    loops: list[Loop] = []
    for line in map(str.strip, ptx.splitlines()):
        if line.startswith("$") and line.partition("//")[0].rstrip().endswith(":"):
            labels[line.partition(":")[0]] = len(instructions)
        elif _PTX_INSTRUCTION.match(line):
            branch = _PTX_BRANCH.search(line)
            if branch and branch[1] in labels:
                loops.append((labels[branch[1]], len(instructions)))
            instructions.append(line)
    first, last = _hottest(instructions, loops)
    return last - first


def sass_outside(sass: str) -> int:
    """Instructions before and after the loop that `ptx_loop` counts, without the padding at the end."""
    instructions: list[str] = []
    places: dict[int, int] = {}
    loops: list[Loop] = []
    for address, instruction in _SASS_INSTRUCTION.findall(sass):
        number = len(instructions)
        places[int(address, 16)] = number
        branch = _SASS_BRANCH.search(instruction)
        to = places.get(int(branch[1], 16), number) if branch else number
        if to < number:
            loops.append((to, number))
        if not instruction.startswith("NOP"):
            instructions.append(instruction)
    first, last = _hottest(instructions, loops)
    return len(instructions) - (last + 1 - first if last else 0)


def _hottest(instructions: list[str], loops: list[Loop]) -> Loop:
    """Of the loops that hold no other, the one with most multiplications, then the longest; (0, 0) where none is."""
    inner = [one for one in loops if not any(other != one and _within(other, one) for other in loops)]

    def heat(one: Loop) -> tuple[int, int]:
        return sum(map(bool, map(_MULTIPLIES.search, instructions[one[0] : one[1]]))), one[1] - one[0]

    return max(inner, key=heat, default=(0, 0))


def _within(inner: Loop, outer: Loop) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]
