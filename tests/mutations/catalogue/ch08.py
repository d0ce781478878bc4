"""Mistakes of chapter 8: rounding, scales, accumulation, what stays out."""

from tests.mutations import Mutation

FORMATS = "dsarch/fp8/formats.py"
REFERENCE = "dsarch/fp8/reference.py"
LAYOUT = "dsarch/fp8/layout.py"
LINEAR = "dsarch/fp8/linear.py"
TRITON = "dsarch/fp8/triton.py"

DECODES = (
    "tests/parity/test_fp8.py"
    "::test_decode_equals_torch_and_ml_dtypes_on_every_code"
)
NEAREST = (
    "tests/test_fp8_formats.py"
    "::test_encode_takes_the_nearest_value_and_the_even_one_on_a_tie"
)
CARRY = (
    "tests/test_fp8_formats.py"
    "::test_a_carry_out_of_the_mantissa_reaches_the_exponent"
)
CAST = (
    "tests/test_fp8_formats.py"
    "::test_the_fast_cast_is_the_definition_behind_a_clamp"
)
ONCE = "tests/test_fp8_formats.py::test_float64_is_rounded_once"
UE8M0 = "tests/test_fp8_formats.py::test_scales_round_up_and_have_no_sign"
ANCHORS = "tests/test_fp8_reference.py::test_anchor_scales"
ZERO = "tests/test_fp8_reference.py::test_zero_tiles_stay_zero"
POWER = "tests/test_fp8_reference.py::test_power_of_two_rounds_up_and_keeps_nan"
FAULT = (
    "tests/test_fp8_reference.py::test_a_fault_spoils_its_own_tile_and_no_other"
)
PRODUCT = (
    "tests/test_fp8_reference.py"
    "::test_products_equal_the_product_of_the_decoded"
)
RAGGED = (
    "tests/test_fp8_reference.py"
    "::test_weight_scale_inv_multiplies_in_ragged_blocks"
)
WEIGHTS = "tests/parity/test_fp8.py::test_weights_decode_as_transformers_does"
CORE = "tests/test_fp8_accumulator.py::test_tensor_core_equals_exact_fractions"
PROMOTION = (
    "tests/test_fp8_accumulator.py"
    "::test_promotion_stops_the_error_from_growing_with_k"
)
FLOOR = "tests/test_fp8_layout.py::test_the_floor_is_under_the_scale"
ROTARY = "tests/test_fp8_layout.py::test_the_rotary_part_is_not_rounded"
KEY = "tests/test_fp8_layout.py::test_an_index_key_takes_132_bytes"
PAGE = "tests/test_fp8_layout.py::test_a_page_has_all_values_before_all_scales"
E4M3 = "tests/test_fp8_linear.py::test_all_operands_are_e4m3"
THREE = (
    "tests/test_fp8_linear.py::test_the_three_products_are_those_of_the_paper"
)
TOKEN = (
    "tests/test_fp8_linear.py::test_a_nan_reaches_the_output_of_its_token_only"
)
ROUNDED = (
    "tests/test_fp8_linear.py::test_a_converted_attention_reads_rounded_weights"
)
MAP = "tests/test_fp8_linear.py::test_convert_follows_the_precision_map_of_v3"
CACHE = (
    "tests/test_fp8_linear.py::test_only_the_layer_after_attention_keeps_e5m6"
)
KERNEL = "tests/test_fp8_kernels.py::test_quantization_kernels"
DECODE = "tests/test_fp8_kernels.py::test_decode_kernel"
GEMM = "tests/test_fp8_kernels.py::test_product_kernel"

MUTATIONS = [
    Mutation(
        id="08.ties-away-from-zero",
        file=FORMATS,
        old="steps = torch.ldexp(size, spec.mantissa_bits - exponent).round()",
        new="steps = torch.ldexp(size, spec.mantissa_bits - exponent)\n"
        "    steps = (steps + 0.5).floor()",
        story="Averages drift upwards by a fraction of a step: values half "
        "way between two codes are always rounded away from zero.",
        tests=(NEAREST,),
    ),
    Mutation(
        id="08.carry-is-lost",
        file=FORMATS,
        old="code = steps.nan_to_num().int()\n",
        new="code = steps.nan_to_num().int() % (2 << spec.mantissa_bits)\n",
        story="A value just below a power of two comes back half as large: "
        "15.9 becomes 8.",
        tests=(CARRY,),
    ),
    Mutation(
        id="08.subnormals-lose-a-factor",
        file=FORMATS,
        old="unit = exponent.clamp(min=1) - spec.bias",
        new="unit = exponent - spec.bias",
        story="Only the smallest values are wrong, by a factor of two: the "
        "exponent field 0 is taken for one below 1.",
        tests=(DECODES,),
    ),
    Mutation(
        id="08.nan-decodes-to-480",
        file=FORMATS,
        old="size = size.masked_fill(magnitude > spec.top, torch.nan)",
        new="size = size.masked_fill(magnitude > spec.top + 1, torch.nan)",
        story="A NaN in a checkpoint loads as 480, and the model is silently "
        "wrong instead of loudly broken.",
        tests=(DECODES,),
    ),
    Mutation(
        id="08.bias-off-by-one",
        file=FORMATS,
        old='"e4m3": Format(4, 3, bias=7,',
        new='"e4m3": Format(4, 3, bias=8,',
        story="Encoding and decoding agree with each other, and every "
        "released weight is half as large as it should be.",
        tests=(DECODES,),
    ),
    Mutation(
        id="08.no-clamp-before-the-cast",
        file=FORMATS,
        old="clamped = widen(x).clamp(-limit, limit)",
        new="clamped = widen(x)",
        story="It works on one version of a library and gives infinities or "
        "NaN on another: the cast itself decides about overflow.",
        tests=(CAST,),
    ),
    Mutation(
        id="08.float64-rounded-twice",
        file=FORMATS,
        old="if format in native and x.dtype != torch.float64:",
        new="if format in native:",
        story="Very rarely a code is one off: float64 goes through float32, "
        "becomes a tie there, and is rounded a second time.",
        tests=(ONCE,),
    ),
    Mutation(
        id="08.scale-code-rounds-to-nearest",
        file=FORMATS,
        old="power = exponent - (mantissa == 0.5).int()",
        new="power = exponent - (mantissa < 0.75).int()",
        story="Half of all tiles clip their largest values: a scale was "
        "rounded down, as the libraries' own UE8M0 cast does.",
        tests=(UE8M0,),
    ),
    Mutation(
        id="08.no-floor-under-amax",
        file=REFERENCE,
        old="s = amax.to(torch.float32).clamp(min=SMALLEST_AMAX) / "
        "largest(format)",
        new="s = amax.to(torch.float32) / largest(format)",
        story="The first padded or fully masked token turns the whole model "
        "into NaN: an all-zero tile is divided by zero.",
        tests=(ZERO,),
    ),
    Mutation(
        id="08.floor-under-the-scale",
        file=REFERENCE,
        old="s = amax.to(torch.float32).clamp(min=SMALLEST_AMAX) / "
        "largest(format)",
        new="s = (amax.to(torch.float32) / largest(format)).clamp("
        "min=SMALLEST_AMAX)",
        story="Small gradients vanish: everything below 0.04 is divided by a "
        "scale meant for larger values, FlashMLA's rule in the wrong place.",
        tests=(ANCHORS,),
    ),
    Mutation(
        id="08.latent-floor-under-amax",
        file=LAYOUT,
        old='s = amax.to(torch.float32) / largest("e4m3")\n'
        "    return power_of_two(s.clamp(min=SMALLEST_SCALE))",
        new="s = amax.to(torch.float32).clamp(min=SMALLEST_SCALE)\n"
        '    return power_of_two(s / largest("e4m3"))',
        story="The cache differs from FlashMLA's for near-zero latents only: "
        "the floor sits under the magnitude, not under the scale.",
        tests=(FLOOR,),
    ),
    Mutation(
        id="08.power-of-two-to-nearest",
        file=REFERENCE,
        old="up = ((bits + 0x7FFFFF) & 0x7F800000)",
        new="up = ((bits + 0x400000) & 0x7F800000)",
        story="Errors jump with power-of-two scales: in half of the tiles "
        "the largest values exceed 448 and are clipped.",
        tests=(POWER,),
    ),
    Mutation(
        id="08.exact-powers-are-doubled",
        file=REFERENCE,
        old="up = ((bits + 0x7FFFFF) & 0x7F800000)",
        new="up = ((bits + 0x800000) & 0x7F800000)",
        story="A tile whose scale is already a power of two wastes one bit: "
        "the bit trick rounds 1 up to 2.",
        tests=(ANCHORS,),
    ),
    Mutation(
        id="08.bit-trick-hides-nan",
        file=REFERENCE,
        old="return torch.where(s.isnan(), s, up)",
        new="return up",
        story="A NaN becomes a zero: the carry of the bit trick runs into "
        "the sign bit and the scale comes out as 0.",
        tests=(POWER,),
    ),
    Mutation(
        id="08.infinite-scale",
        file=REFERENCE,
        old="    return s.masked_fill(~s.isfinite(), torch.nan)",
        new="    return s.nan_to_num()",
        story="An overflow in one activation is swallowed: its tile turns "
        "into zeros and finite numbers, and training goes on with them.",
        tests=(FAULT,),
    ),
    Mutation(
        id="08.scale-inv-divides",
        file=REFERENCE,
        old="q = Quantized(weight, scale_inv.to(torch.float32), BLOCK)",
        new="q = Quantized(weight, 1 / scale_inv.to(torch.float32), BLOCK)",
        story="Every FP8 checkpoint loads without an error and produces "
        "noise: weight_scale_inv was believed by its name.",
        tests=(WEIGHTS, RAGGED),
    ),
    Mutation(
        id="08.no-ragged-block",
        file=REFERENCE,
        old="want = [-(-size // 128) for size in weight.shape]",
        new="want = [size // 128 for size in weight.shape]",
        story="DeepSeek's own kv_a projection is refused: 576 rows have five "
        "rows of scales, not four.",
        tests=(WEIGHTS, RAGGED),
    ),
    Mutation(
        id="08.first-scale-for-all",
        file=REFERENCE,
        old="scale = q.scale[:, start // cols].repeat_interleave(rows)",
        new="scale = q.scale[:, 0].repeat_interleave(rows)",
        story="Matrices up to 128 wide multiply correctly and wider ones do "
        "not: every chunk is scaled like the first.",
        tests=(PRODUCT,),
    ),
    Mutation(
        id="08.no-promotion",
        file=REFERENCE,
        old="chunk = max(width, 1) if promote is None else promote",
        new='alone = promote is None or accumulator == "fp22"\n'
        "    chunk = max(width, 1) if alone else promote",
        story="Long sums come out too small, by more the longer they are: "
        "nothing moves the partial sum out of the 14-bit register.",
        tests=(PROMOTION,),
    ),
    Mutation(
        id="08.fourteen-fraction-bits",
        file=REFERENCE,
        old="FRACTION_BITS = 13",
        new="FRACTION_BITS = 14",
        story="The emulated tensor core is twice as exact as the real one: "
        "its 14 bits include the leading one.",
        tests=(CORE,),
    ),
    Mutation(
        id="08.floor-instead-of-cut",
        file=REFERENCE,
        old="unit[..., None]).trunc().sum(-1)",
        new="unit[..., None]).floor().sum(-1)",
        story="Sums of mixed signs drift to the negative side: products are "
        "cut towards minus infinity instead of towards zero.",
        tests=(CORE,),
    ),
    Mutation(
        id="08.rotary-key-in-fp8",
        file=LAYOUT,
        old="parts = [values, s, k_rope.to(torch.bfloat16)]",
        new='k_rope = cast(k_rope, "e4m3").to(torch.bfloat16)\n'
        "    parts = [values, s, k_rope]",
        story="Attention loses its sense of position at long range: the "
        "rotary key was rounded to three bits along with the latent.",
        tests=(ROTARY,),
    ),
    Mutation(
        id="08.index-scale-not-rounded",
        file=LAYOUT,
        old="*, pow2: bool = True, paged: bool = False",
        new="*, pow2: bool = False, paged: bool = False",
        story="The indexer's cache differs from V3.2's in the last bits: its "
        "scales are powers of two there.",
        tests=(KEY,),
    ),
    Mutation(
        id="08.page-keeps-keys-together",
        file=LAYOUT,
        old="page = torch.cat([values.flatten(), s.flatten()])",
        new="page = torch.cat([values, s], -1)",
        story="The kernel reads scales where values are: a page holds all "
        "values first and all scales behind them.",
        tests=(PAGE,),
    ),
    Mutation(
        id="08.e5m2-gradients",
        file=LINEAR,
        old='gradient_format: str = "e4m3"',
        new='gradient_format: str = "e5m2"',
        story="Gradients carry four times the squared error: the older "
        "recipe with E5M2, which tile scales have made unnecessary.",
        tests=(E4M3,),
    ),
    Mutation(
        id="08.square-activation-tiles",
        file=LINEAR,
        old="activation: Block = TILE",
        new="activation: Block = BLOCK",
        story="A token's output depends on the tokens behind it: one large "
        "future activation coarsens the past.",
        tests=(TOKEN, THREE),
    ),
    Mutation(
        id="08.one-scale-per-weight",
        file=LINEAR,
        old="weight: Block = BLOCK",
        new="weight: Block = (None, None)",
        story="One large weight makes all small ones coarse: the matrix has "
        "a single scale.",
        tests=(THREE,),
    ),
    Mutation(
        id="08.kept-activation-in-e4m3",
        file=LINEAR,
        old="if recipe.cache != recipe.format:",
        new='if recipe.cache not in (recipe.format, "e5m6"):',
        story="The output projection learns from an input that was rounded "
        "twice: the twelve-bit cache is never used.",
        tests=(THREE,),
    ),
    Mutation(
        id="08.wrong-layer-keeps-e5m6",
        file=LINEAR,
        old='AFTER_ATTENTION = "o_proj"',
        new='AFTER_ATTENTION = "down_proj"',
        story="Memory grows where it should not: the layer after attention "
        "is o_proj, and only its input is kept in twelve bits.",
        tests=(CACHE,),
    ),
    Mutation(
        id="08.skip-by-substring",
        file=LINEAR,
        old='return not set(name.split(".")) & set(skip)',
        new="return not any(kept in name for kept in skip)",
        story="Only part of the speed-up arrives: the router's name 'gate' "
        "also keeps every gate_proj out of FP8.",
        tests=(MAP,),
    ),
    Mutation(
        id="08.head-in-fp8",
        file=LINEAR,
        old='    "lm_head",\n',
        new="",
        story="Perplexity rises although every block is fine: the output "
        "head was converted as well.",
        tests=(MAP,),
    ),
    Mutation(
        id="08.kernel-subnormal-grid",
        file=TRITON,
        old="exponent = tl.maximum((bits >> 23) & 0xFF, 127 - 6)",
        new="exponent = tl.maximum((bits >> 23) & 0xFF, 127 - 7)",
        story="The kernel and the reference differ for the smallest values "
        "only: the grid is refined once too often near zero.",
        tests=(KERNEL,),
    ),
    Mutation(
        id="08.kernel-hides-faults",
        file=TRITON,
        old='return tl.where(peak < 0x7F800000, s, float("nan"))',
        new="return s",
        story="On a GPU an infinity turns into finite values, on the CPU "
        "into NaN: the kernel does not mark the spoilt tile.",
        tests=(KERNEL,),
    ),
    Mutation(
        id="08.kernel-last-band",
        file=TRITON,
        old="return band * 8 + inside % height, inside // height",
        new="return band * 8 + inside % 8, inside // 8",
        story="Some outputs are never written, and only for sizes that are "
        "not a multiple of eight tiles.",
        tests=(GEMM,),
    ),
    Mutation(
        id="08.decode-keeps-old-weights",
        file=TRITON,
        old="out = out * kept + tl.dot(p.to(latent.dtype), latent)",
        new="out = out + tl.dot(p.to(latent.dtype), latent)",
        story="Short contexts are right and long ones are not: the online "
        "softmax does not rescale what it has added up before.",
        tests=(DECODE,),
    ),
    Mutation(
        id="08.rounded-weight-has-no-gradient",
        file=LINEAR,
        old="        return dw, None\n\n\nclass FP8Linear",
        new="        return torch.zeros_like(dw), None\n\n\nclass FP8Linear",
        story="Training converges to something worse: the up-projection of "
        "the latent never learns, because rounding stops its gradient.",
        tests=(ROUNDED,),
    ),
]
