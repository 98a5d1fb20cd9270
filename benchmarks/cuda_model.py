"""What the CUDA operators should take on two cards: the arithmetic behind cuda_predicted.csv.

A kernel takes as long as the slowest of what it needs: bytes of memory, L2 or shared memory, sums of matrix
products, and instructions. A work takes the sum of its kernels, and LAUNCH between them.

Nothing here was measured by mach_ext. The copy and the bf16 product of an H200 were measured with other
programs. The H100 has the same processor, so it differs in memory alone, by the ratio of the data sheets.
"""

from __future__ import annotations

from dataclasses import dataclass

# 4 schedulers issue for 32 lanes each, at the base boost.
MULTIPROCESSORS, LANES, CLOCK = 132, 4 * 32, 1.755e9
_PROCESSOR = {
    "l2_gather": 5.5e12,  # bytes/s, assumed
    "shared_gather": 11.4e12,  # entries of 16 bytes, 10.4 cycles a warp by a simulation of bank conflicts
    "bf16_gemm": 7.8e14,  # flop/s
    "tf32_gemm": 3.9e14,  # half of it
    "fp32_gemm": 5.0e13,
    "mma_sync": 4.8e14,  # bf16 products by the instructions of sm_80, some 60 % of the best of sm_90
    "instructions": MULTIPROCESSORS * LANES * CLOCK,  # of one lane
}
CARDS = {
    "H100": {"hbm_copy": 3.0e12, "row_gather": 2.8e12, **_PROCESSOR},
    "H200": {"hbm_copy": 4.3e12, "row_gather": 4.0e12, **_PROCESSOR},
}
GATHER_SHARE = 0.85  # of a gather's ceiling: what a kernel reaches that keeps enough loads under way
ISSUE_SHARE = 0.8  # of "instructions": what a kernel reaches whose instructions seldom wait
LAUNCH, QUEUE = 2e-6, 5e-6  # seconds between two kernels; to queue an operator from Python


@dataclass(frozen=True)
class Instructions:
    """Instructions of one lane for each unit of work, counted in the machine code of sm_90, nvcc 13.0.

    `python benchmarks/sass.py KERNEL` lists the loops of a kernel. `how` says what was counted. What a loop
    does for rows that are not aligned is left out, and so is what a reciprocal does for infinities.
    """

    each: float
    unit: str
    how: str


INSTRUCTIONS = {
    "bucket_bce": Instructions(
        102.3, "logit", "374 of the 453 of the loop for 4 logits; 542 once for 64; 0.3 in the second kernel"
    ),
    "bucket_bce, bfloat16": Instructions(109.3, "logit", "the same, but 402 of the 453"),
    "extremes": Instructions(8.13, "score", "130 of the loop; 16 scores a lane"),
    "extremes, row": Instructions(32 * 288, "document and repetition", "288 of a warp outside the loop"),
    "sparse_linear": Instructions(
        5.14, "product", "329 of the loop of bf16 rows; 8 rows of 8 columns a lane"
    ),
    "feature_rows": Instructions(6.4, "product", "103 of the loop; 4 rows of 4 columns a lane"),
    "scan, shared": Instructions(
        1.8, "lookup", "143 of a repetition and 40 of its copy for 8 labels of 16 documents; 780 once a tile"
    ),
    "scan, L2": Instructions(
        2.9, "lookup", "323 of a repetition for 8 labels of 16 documents; 780 once a tile"
    ),
    "lists": Instructions(
        28.0, "posting", "two passes of 14 each: of the 28 of a pass, the half that one list runs"
    ),
    "forward, product": Instructions(
        0.0331, "flop", "291 of the loop, 130 in the last two of 16 steps; 64 HMMA of 4,096 flop a warp"
    ),
    "forward, product for the loss": Instructions(
        0.0312, "flop", "274 of the loop, 129 in the last two of 16 steps; 64 HMMA of 4,096 flop a warp"
    ),
    "forward logits": Instructions(16.5, "logit", "73 of the loop for 8 logits; 939 once for 128"),
    "forward scores": Instructions(
        83.7, "logit", "611 of the 667 of the loop with the sigmoid for 8 logits; 939 once for 128"
    ),
    "forward loss": Instructions(
        114.0, "logit", "706 of the 766 of the loop for 8 logits; 3,294 once for 128, of labels 1,888"
    ),
}


def issue(kernel: str, units: float, card: dict[str, float]) -> float:
    """Seconds to issue the instructions of a kernel for so many units."""
    return INSTRUCTIONS[kernel].each * units / (ISSUE_SHARE * card["instructions"])


def sparse_linear(products: float, first: float, rest: float, card: dict[str, float]) -> float:
    """A row's first reading comes from memory. The others, and what is written, go through L2."""
    read = first / (GATHER_SHARE * card["row_gather"]) + rest / card["l2_gather"]
    return max(read, issue("sparse_linear", products, card)) + LAUNCH


def adam_step(moved: float, products: float, card: dict[str, float]) -> float:
    """Rows of the weight and two moments, read and written, and the sums of their gradients."""
    read = moved / (GATHER_SHARE * card["row_gather"])
    return max(read, issue("feature_rows", products, card)) + LAUNCH


BCE_LAUNCHES = FORWARD_BCE_LAUNCHES = 2  # a kernel for tiles, and one that adds up their sums


def bucket_bce(logits: float, half: bool, card: dict[str, float]) -> float:
    """The logits are read, and the gradient is written. Half a byte is for the sums of the columns."""
    moved = logits * (6.5 if half else 8.5)
    kernel = "bucket_bce, bfloat16" if half else "bucket_bce"
    return max(moved / card["hbm_copy"], issue(kernel, logits, card))


def bucket_forward(
    N: int, H: int, buckets: int, epilogue: str, bytes_each: float, card: dict[str, float]
) -> float:
    """The fused product. A tile's epilogue runs beside the products of others, in the same issue slots."""
    kernel = "forward, product for the loss" if epilogue == "forward loss" else "forward, product"
    logits = N * buckets
    flops = 2 * H * logits
    moved = (bytes_each * logits + 2 * H * (N + buckets)) / card["hbm_copy"]
    issued = issue(kernel, flops, card) + issue(epilogue, logits, card)
    return max(flops / card["mma_sync"], moved, issued)


def product(flops: float, moved: float, resource: str, card: dict[str, float]) -> float:
    return max(flops / card[resource], moved / card["hbm_copy"])


# Documents whose bytes of an entry are read whatever part of them is left.
GROUP = 16
EXTREMES, TABLE = 4, 5  # bytes a score: read; read and written as a code
CHAIN = 8  # launches
FIXED = 40e-6  # of a document's block in the lists, besides its postings
SLOWEST = 1.5  # the slowest document over the mean


@dataclass(frozen=True)
class Decode:
    """What was counted of a decode on the very scores of the benchmark.

    Attributes:
        scanned: Share of the lookups that the scan does.
        postings: A document's, in the lists. 0 where there is no use of lists.
        left: Documents that leave the lists for the scan.
        other: Seconds for what is not counted.
    """

    scanned: float = 0.0
    postings: float = 0.0
    left: int = 0
    other: float = 0.0


def decode(N: int, L: int, R: int, B: int, counted: Decode, card: dict[str, float]) -> float:
    scores, shared = N * R * B, 16 * B <= 200 * 1024
    where, kernel = ("shared_gather", "scan, shared") if shared else ("l2_gather", "scan, L2")
    extremes = issue("extremes", scores, card) + issue("extremes, row", N * R, card)
    total = max(EXTREMES * scores / card["hbm_copy"], extremes) + CHAIN * LAUNCH
    scanned = counted.scanned * N + -(-counted.left // GROUP) * GROUP * (1 if shared else 2)
    if scanned:
        lookups = scanned * L * R
        scan = max(lookups / (GATHER_SHARE * card[where]), issue(kernel, lookups, card))
        total += scan + TABLE * scores * min(1.0, scanned / N) / card["hbm_copy"] + 10e-6
    if counted.postings:
        mean = issue("lists", N * counted.postings, card)
        alone = INSTRUCTIONS["lists"].each * counted.postings / (ISSUE_SHARE * LANES * CLOCK)
        total += max(SLOWEST * mean, alone) + FIXED
    return total + counted.other


def torch_decode(N: int, L: int, R: int, card: dict[str, float]) -> dict[str, float]:
    """PyTorch's eager form reads an index of 8 bytes for each part of a sum, out of L2 where it fits.

    It writes the part and reads it again, 4 bytes each. Then topk reads the means four times. The compiler
    leaves out what is written in between.
    """
    where = "l2_gather" if 8 * R * L < 40e6 else "hbm_copy"
    index, parts = 8 * N * R * L / card[where], 8 * N * R * L / card["hbm_copy"]
    means = 5 * 4 * N * L / card["hbm_copy"]
    seconds = {"torch": index + parts + means}
    if L <= 1_000_000:
        seconds["torch.compile"] = index + means
    return seconds


@dataclass(frozen=True)
class Step:
    """Sizes of a training step: documents, logits of all repetitions, entries of the bucket weight."""

    half: bool
    N: int
    H: int
    logits: int
    weights: int
    gathered: float  # bytes of the encoder's rows, one a non-zero
    stepped: float  # bytes of the rows that occur


# Of a step of 2,048 documents in groups of repetitions, as tests/training/test_launches.py counts them.
LAUNCHES = {"float32": 83, "bfloat16": 87, "fused": 55}
UNFUSED = "mach_ext, unfused"  # a step in bfloat16 without the fused forward


def queued(kernels: float, launches: int) -> float:
    """Seconds of so many kernels, or to queue them if that takes longer."""
    return max(kernels + launches * LAUNCH, launches * QUEUE)


def training_step(step: Step, card: dict[str, float]) -> dict[str, float]:
    """The three products, the loss, the bytes of the weights and of the encoder. By provider.

    In groups of repetitions a product writes the logits, 4 bytes each. The loss reads them and writes their
    gradient, 4 and 2. Two products read that, 2 each. In bf16 this makes 14 bytes a logit. The fused forward
    of a step in bf16 writes the gradient alone, which makes 6. Partial sums come on top, and each weight has
    its step and its cast. Queued from Python, a step takes QUEUE for each launch at least.
    """
    resource, narrow = ("bf16_gemm", 2) if step.half else ("fp32_gemm", 4)
    flops = 2 * step.logits * step.H
    forward = product(flops, 4 * step.logits, resource, card)
    backward = 2 * product(flops, narrow * step.logits, resource, card)
    loss = bucket_bce(step.logits, step.half, card)
    dense = step.weights * (40 if step.half else 32)
    other = (dense + step.gathered + 8 * step.stepped) / card["hbm_copy"]
    form = "bfloat16" if step.half else "float32"
    seconds = {"mach_ext": queued(forward + loss + backward + other, LAUNCHES[form])}
    if step.half:
        buckets = step.logits // step.N
        fused = bucket_forward(step.N, step.H, buckets, "forward loss", 2, card)
        seconds = {
            "mach_ext": queued(fused + backward + other, LAUNCHES["fused"]),
            UNFUSED: seconds["mach_ext"],
        }
    # Eager sparse gradients: written, put in order, added up; a dozen passes of SparseAdam.
    sparse = 4 * step.gathered + 12 * step.stepped
    products = max(3 * flops / card[resource], 0)
    for name, each in zip(("torch", "torch.compile"), (100, 26) if step.half else (96, 40), strict=True):
        seconds[name] = products + (each * step.logits + dense + sparse) / card["hbm_copy"]
    return seconds
