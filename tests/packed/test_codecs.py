"""Every codec against the format written out in NumPy, value by value, and against Transformers' own operations."""

import itertools

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.gguf.dequant import GGML_NAME
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from finemoe.errors import FinemoeError
from finemoe.packing.codec import Plain
from finemoe.packing.fp8 import Fp8
from finemoe.packing.gguf import Gguf
from finemoe.packing.int8 import Int8
from finemoe.packing.int_words import IntWords
from finemoe.packing.methods import codec_of
from finemoe.packing.mxfp4 import Mxfp4
from finemoe.packing.transposed import Transposed
from tests.packed.numerics import E4M3, FP4, e8m0, float32, nibble, quantize_fp8, quantize_mxfp4, rounded

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [(16, 32), (40, 48), (33, 70), (1, 32), (7, 1), (192, 96), (129, 130)]
SCALES = [1.0, 0.3, -2.5, 0.0, 1e-3, 2.0**-140, 1e-38, 3e38, float("inf"), float("nan")]
PACKED_BY_GGUF = ("Q4_0", "Q4_1", "Q8_0")  # the package unpacks more types than it packs
UNPACKING = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(params=["compiled", "torch"])
def way(request, monkeypatch) -> str:
    """Compiled code where there is some, and torch, which all other devices use."""
    if request.param == "torch":
        for module in ("fp8", "mxfp4"):
            monkeypatch.setattr(f"finemoe.packing.{module}.unpacks_here", lambda out: False)
    return request.param


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Bit for bit, zeros' signs, too; one NaN is as good as another."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    whole = {4: torch.int32, 2: torch.int16}[found.element_size()]
    is_equal = (found.contiguous().view(whole) == expected.contiguous().view(whole)) | (found.isnan() & expected.isnan())
    places = (~is_equal).nonzero().tolist()[:3]
    assert is_equal.all(), [(place, found[tuple(place)].item(), expected[tuple(place)].item()) for place in places]


def unpacked(codec, packed, dtype=torch.float32) -> torch.Tensor:
    out = torch.full(codec.shape, 7.0, dtype=dtype)
    for told, tensor in zip(codec.tensors, packed, strict=True):
        assert told.dtype == tensor.dtype
        assert told.shape == tuple(tensor.shape)
        assert told.nbytes == tensor.nbytes
    codec.unpack(packed, out)
    return out


def random(shape, seed=0, spread=3.0) -> torch.Tensor:
    """Values of many sizes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.exp(spread * torch.randn(shape, generator=generator))


# FP8


def every_byte(num_scales: int) -> torch.Tensor:
    """[16, 16 * num_scales], every byte in each block of 16 x 16."""
    return torch.arange(256, dtype=torch.uint8).view(16, 16).repeat(1, num_scales).view(torch.float8_e4m3fn)


@UNPACKING
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_fp8_every_byte_with_every_kind_of_scale(way, dtype, scale_dtype):
    scales = torch.tensor([SCALES]).to(scale_dtype)
    codec = Fp8.of((16, 16 * len(SCALES)), (16, 16), scale_dtype)
    found = unpacked(codec, [every_byte(len(SCALES)), scales], dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = np.concatenate([E4M3.reshape(16, 16) * scale for scale in float32(scales)[0]], axis=1)
    assert_same(found, rounded(expected, dtype))
    assert_same(found, Fp8Dequantize(None)._dequantize_one(every_byte(len(SCALES)), scales, output_dtype=dtype))


@UNPACKING
@pytest.mark.parametrize("scale_dtype", [torch.uint8, torch.float8_e8m0fnu], ids=str)
def test_fp8_every_byte_with_every_exponent(way, dtype, scale_dtype):
    scales = torch.arange(256, dtype=torch.uint8)[None].view(scale_dtype)
    found = unpacked(Fp8.of((16, 16 * 256), (16, 16), scale_dtype), [every_byte(256), scales], dtype)
    assert_same(found, Fp8Dequantize(None)._dequantize_one(every_byte(256), scales, output_dtype=dtype))
    last = np.float32("inf" if scale_dtype == torch.uint8 else "nan")  # 255: 2^128 is no float32; as a type of its own, NaN
    with np.errstate(over="ignore", invalid="ignore"):
        powers = [*(np.float32(e8m0(byte)) for byte in range(255)), last]
        expected = np.concatenate([E4M3.reshape(16, 16) * power for power in powers], axis=1)
    assert_same(found, rounded(expected, dtype))


@UNPACKING
@pytest.mark.parametrize("block", [(16, 16), (128, 128), (1, 32), (8, 64), (256, 1)], ids=str)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_fp8_whose_last_blocks_are_cut_off(way, shape, block, dtype):
    weight, scales, worth = quantize_fp8(float32(random(shape)), block, "float32")
    assert_same(unpacked(Fp8.of(shape, block), [weight, scales], dtype), rounded(worth, dtype))


@pytest.mark.parametrize("scale_shape", [(), (1,), (1, 1)], ids=str)
def test_fp8_with_a_single_scale(way, scale_shape):
    scale = torch.full(scale_shape, 0.3)
    codec = Fp8((16, 16), (16, 16), scale_shape)
    found = unpacked(codec, [every_byte(1), scale])
    assert_same(found, torch.from_numpy(E4M3.reshape(16, 16) * np.float32(0.3)))
    assert_same(found, Fp8Dequantize(None)._dequantize_one(every_byte(1), scale, output_dtype=torch.float32))


@pytest.mark.parametrize("is_transposed", [False, True])
@UNPACKING
def test_into_a_part_of_a_larger_parameter(way, dtype, is_transposed):
    """Rows of a fused matrix, or columns; what lies beside them stays."""
    weight, scales, worth = quantize_fp8(float32(random((40, 48))), (16, 16), "float32")
    whole = torch.full((96, 80), 7.0, dtype=dtype)
    part = whole.t()[8:48, 16:64] if is_transposed else whole[16:56, 8:56]
    Fp8.of((40, 48), (16, 16)).unpack([weight, scales], part)
    assert_same(part, rounded(worth, dtype))
    assert (whole == 7).sum() >= whole.numel() - part.numel()


def test_transformers_spreads_the_blocks_evenly():
    """Why ragged matrices have a reference of their own: 192 rows in blocks of 128 are two blocks of 96 to Transformers."""
    scales = torch.tensor([[1.0], [2.0]])
    found = Fp8Dequantize(None)._dequantize_one(torch.ones(192, 4).to(torch.float8_e4m3fn), scales, output_dtype=torch.float32)
    assert found[:, 0].tolist() == [1.0] * 96 + [2.0] * 96
    codec = Fp8.of((192, 4), (128, 128))
    assert unpacked(codec, [torch.ones(192, 4).to(torch.float8_e4m3fn), scales])[:, 0].tolist() == [1.0] * 128 + [2.0] * 64
    with pytest.raises(ValueError, match="not divisible by scale grid"):
        Fp8Dequantize(None)._dequantize_one(torch.ones(40, 4).to(torch.float8_e4m3fn), torch.ones(3, 1))


# MXFP4


def every_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Every byte with every scale: blocks [256, 16, 16], scales [256, 16], one scale a row."""
    blocks = torch.arange(256, dtype=torch.uint8).view(16, 16).repeat(256, 1, 1)
    return blocks, torch.arange(256, dtype=torch.uint8)[:, None].repeat(1, 16)


@UNPACKING
def test_mxfp4_every_byte_with_every_scale(way, dtype):
    blocks, scales = every_pair()
    found = unpacked(Mxfp4((256, 512)), [blocks, scales], dtype)
    row = np.array([nibble(byte >> shift & 15) for byte in range(256) for shift in (0, 4)], dtype=np.float64)
    with np.errstate(over="ignore"):
        expected = np.stack([row * e8m0(byte) for byte in range(256)]).astype(np.float32)
    assert_same(found, rounded(expected, dtype))
    assert_same(found, convert_moe_packed_tensors(blocks[None], scales[None], dtype=dtype)[0].t())


@UNPACKING
def test_mxfp4_as_gpt_oss_computes_with_it(way, dtype):
    blocks, scales, worth = quantize_mxfp4(float32(random((40, 96))))
    found = unpacked(Transposed(Mxfp4((40, 96))), [blocks, scales], dtype)
    assert_same(found, rounded(worth.T.copy(), dtype))
    assert_same(found, convert_moe_packed_tensors(blocks[None], scales[None], dtype=dtype)[0])


@pytest.mark.parametrize("columns", [1, 31, 33, 70])
def test_mxfp4_whose_last_block_is_cut_off(way, columns):
    wide = np.zeros((5, -(-columns // 32) * 32), np.float32)
    wide[:, :columns] = float32(random((5, columns)))
    blocks, scales, worth = quantize_mxfp4(wide)
    assert_same(unpacked(Mxfp4((5, columns)), [blocks, scales]), torch.from_numpy(worth[:, :columns].copy()))


# INT8, GGUF, plain


@UNPACKING
def test_int8_every_byte(dtype):
    scales = torch.tensor([one for one in SCALES if np.isfinite(one)])[:, None]
    codes = torch.arange(-128, 128, dtype=torch.int8).repeat(len(scales), 1)
    with np.errstate(over="ignore"):
        expected = np.arange(-128, 128, dtype=np.float32)[None] * scales.numpy()
    assert_same(unpacked(Int8((len(scales), 256)), [codes, scales], dtype), rounded(expected, dtype))


@UNPACKING
@pytest.mark.parametrize("kind", GGML_NAME.values())
def test_gguf_as_its_own_package_unpacks_it(kind, dtype):
    gguf = pytest.importorskip("gguf")
    codec = Gguf.of((6, 512), int(gguf.GGMLQuantizationType[kind]))
    values = float32(random((6, 512), spread=0.5))
    if kind in PACKED_BY_GGUF:
        blocks = gguf.quantize(values, gguf.GGMLQuantizationType[kind])
    else:  # any bytes will do, but for halves that are no number
        blocks = np.random.default_rng(0).integers(0, 56, codec.tensors[0].shape, dtype=np.uint8)
    expected = gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    assert np.isfinite(expected).all()
    assert_same(unpacked(codec, [torch.from_numpy(blocks.copy())], dtype), rounded(expected, dtype))


@UNPACKING
def test_what_is_not_packed_is_rounded_once(dtype):
    values = random((6, 5))
    assert_same(unpacked(Plain((6, 5), torch.float32), [values], dtype), rounded(values.numpy(), dtype))


# Packers


def packers(shape):
    """All of them, for a matrix of that shape."""
    return {"fp8": Fp8.of(shape, (16, 16)), "fp8 128": Fp8.of(shape), "mxfp4": Mxfp4(shape), "int8": Int8(shape)}


PACKING = pytest.mark.parametrize("name", packers((1, 1)))
MATRICES = {
    "usual": lambda shape: random(shape, spread=0.0),
    "of many sizes": random,
    "tiny": lambda shape: random(shape) * 1e-37,
    "below all normal numbers": lambda shape: random(shape, spread=0.0) * 1e-43,
    "huge": lambda shape: random(shape, spread=0.0).clamp(-3, 3) * 1e38,
    "zeros": torch.zeros,
    "negative zeros": lambda shape: -torch.zeros(shape),
    "one value": lambda shape: torch.full(shape, -0.7),
    "rows of zeros": lambda shape: random(shape) * (torch.arange(shape[0]) % 3 == 0)[:, None],
    "one value alone": lambda shape: torch.zeros(shape).index_put_((torch.tensor(0), torch.tensor(0)), torch.tensor(5.0)),
    "bf16": lambda shape: random(shape).bfloat16(),
    "fp16": lambda shape: random(shape, spread=0.5).half(),
}


def bound(name: str, matrix: torch.Tensor) -> torch.Tensor:
    """By how much each value may be off, float64."""
    values = matrix.double().abs()
    if name == "int8":
        scale = values.amax(dim=1, keepdim=True) / 127
        return (scale * 0.5001 + 127 * 2.0**-150).expand(values.shape)
    if name == "mxfp4":
        most = blockwise_most(values, (1, 32))
        step = torch.exp2(torch.floor(torch.log2(most.clamp(min=2.0**-125))) - 2).clamp(min=2.0**-127)
        table = torch.tensor([*FP4], dtype=torch.float64)
        nearest = (values[..., None] - table * step[..., None]).abs().amin(dim=-1)
        return nearest * 1.0001 + 2.0**-150
    scale = blockwise_most(values, (128, 128) if "128" in name else (16, 16)) / 448
    return torch.maximum(values * 2.0**-4, scale * 2.0**-10) * 1.0001 + 448 * 2.0**-149


def blockwise_most(values: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    most = torch.zeros_like(values)
    for row, column in itertools.product(range(0, values.shape[0], block[0]), range(0, values.shape[1], block[1])):
        part = slice(row, row + block[0]), slice(column, column + block[1])
        most[part] = values[part].max()
    return most


@PACKING
@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("shape", [(32, 64), (33, 70), (1, 1)], ids=str)
def test_what_is_packed_is_as_near_as_its_format_allows(name, kind, shape):
    codec, matrix = packers(shape)[name], MATRICES[kind](shape)
    before = matrix.clone()
    packed = codec.pack(matrix)
    assert torch.equal(matrix, before), "packing must leave the matrix alone"
    found = unpacked(codec, packed)
    off = (found.double() - matrix.double()).abs()
    assert (off <= bound(name, matrix)).all(), (off - bound(name, matrix)).max()
    assert torch.equal(found == 0, found == -0.0)
    assert (found[matrix == 0] == 0).all()


@PACKING
@pytest.mark.parametrize("kind", MATRICES)
def test_packing_twice_changes_nothing(name, kind):
    codec = packers((33, 70))[name]
    once = codec.pack(MATRICES[kind]((33, 70)))
    twice = codec.pack(unpacked(codec, once))
    assert_same(unpacked(codec, twice), unpacked(codec, once))
    for one, other in zip(once, twice, strict=True):
        if kind != "below all normal numbers":  # blocks that became zero have another scale
            assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@PACKING
def test_packing_is_the_same_wherever_a_matrix_lies(name):
    matrix = random((70, 33))
    codec = packers((33, 70))[name]
    for one, other in zip(codec.pack(matrix.t()), codec.pack(matrix.t().contiguous()), strict=True):
        assert torch.equal(one.contiguous().view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize(
    ("value", "nearest"),
    [
        *[(0.25, 0.0), (0.75, 1.0), (1.25, 1.0), (1.75, 2.0), (2.5, 2.0), (3.5, 4.0), (5.0, 4.0)],  # ties: to the even code
        *[(0.2501, 0.5), (0.7499, 0.5), (5.001, 6.0), (4.999, 4.0), (6.0, 6.0), (7.99, 6.0)],
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("power", [-126, -20, 0, 100])
def test_mxfp4_goes_to_the_nearest_value_and_ties_to_the_even_code(value, nearest, sign, power):
    row = torch.full((1, 32), 4.0)
    row[0, 5] = sign * value
    codec = Mxfp4((1, 32))
    blocks, scales = codec.pack(row * 2.0**power)
    assert scales.item() == power + 127
    found = unpacked(codec, [blocks, scales])[0, 5].item()
    assert found == sign * nearest * 2.0**power
    assert np.signbit(found) == (sign < 0)


def test_fp8_packs_as_numpy_does():
    """Scales and bytes; ties go to the even byte."""
    matrix = random((40, 48))
    weight, scales, _ = quantize_fp8(float32(matrix), (16, 16), "float32")
    found = Fp8.of((40, 48), (16, 16)).pack(matrix)
    torch.testing.assert_close(found[1], scales, rtol=1e-6, atol=0)
    assert (found[0].view(torch.uint8) == weight.view(torch.uint8)).float().mean() > 0.999  # a scale's last bit may turn a tie


def test_mxfp4_packs_as_numpy_does():
    matrix = random((40, 96))
    for one, other in zip(Mxfp4((40, 96)).pack(matrix), quantize_mxfp4(float32(matrix)), strict=False):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("bits", "columns", "num_groups"), [(4, 96, 3), (4, 60, 1), (8, 96, 3), (8, 62, 1)])
def test_int_words_have_the_bits_of_compressed_tensors(bits, columns, num_groups, dtype):
    rows = 40
    group_size = columns // num_groups if num_groups > 1 else None
    strategy = "group" if group_size else "channel"
    weights = QuantizationArgs(num_bits=bits, type="int", symmetric=True, strategy=strategy, group_size=group_size)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, format="pack-quantized")
    generator = torch.Generator().manual_seed(0)
    codec = IntWords((rows, columns), bits, num_groups, torch.bfloat16)
    words = torch.randint(-(2**31), 2**31 - 1, codec.tensors[0].shape, generator=generator, dtype=torch.int32)
    scales = torch.rand(rows, num_groups, generator=generator).bfloat16()
    shape = torch.tensor([rows, columns])
    whole = {"weight_packed": words, "weight_scale": scales, "weight_shape": shape}
    expected = BaseCompressor.get_value_from_registry("pack-quantized").decompress(whole, scheme)["weight"].to(dtype)
    out = torch.empty(rows, columns, dtype=dtype)
    codec.unpack([words, scales, shape], out)
    assert torch.equal(out, expected)
    per_word = 32 // bits
    for row, column in ((0, 0), (3, columns - 1), (rows - 1, 7)):
        number = ((int(words[row, column // per_word]) >> bits * (column % per_word)) & (2**bits - 1)) - 2 ** (bits - 1)
        scale = scales[row, column * num_groups // columns]
        assert out[row, column] == (torch.tensor(float(number)).bfloat16() * scale).to(dtype)


def test_what_is_only_counted_says_so_where_it_should_be_unpacked():
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False}
    told = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    codec = codec_of(told | {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}, (16, 64), False)
    assert sum(tensor.nbytes for tensor in codec.tensors) == 16 * 64 // 2 + 16 * 2 * 2 + 16 + 2 * 2 * 4
    with pytest.raises(FinemoeError, match=r"size of experts in compressed-tensors int4, but cannot unpack them"):
        codec.unpack([], torch.empty(16, 64))
