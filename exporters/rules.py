"""What TensorRT's ONNX parser takes, as data: operators, limits, and the rules that `linter.py` checks.

Sources: the parser's `docs/operators.md` and `supports_operator` of TensorRT-RTX 1.7.1, TensorRT's pages on
transformers and quantised types; limits marked "measured" come from builds with TensorRT-RTX 1.7.1 without a
GPU (docs/engines.md). `VERSION` changes with the data.
"""

from typing import NamedTuple

VERSION = "2026-11-25"

OPSETS = (9, 24)  # of the standard domain
TOPK_MOST = 3840  # measured: 3840 builds, 3841 is refused
CACHE_DTYPES = ("float32", "float16", "bfloat16")
# Types that QuantizeLinear and DequantizeLinear may have, and the compute capability that has them; measured,
# but for FP4, which is documented from 10.0 on. uint8 would be read as INT8.
QUANTISED = {"int8": "7.5", "int4": "8.0", "float8_e4m3fn": "8.9", "float4_e2m1fn": "10.0"}
WEIGHTS_ONLY = ("int4",)

_OPERATORS = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization
BlackmanWindow Cast CastLike CausalConvWithState Ceil Celu Clip Concat Constant ConstantOfShape Conv
ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand
EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool
GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HammingWindow HannWindow HardSigmoid
HardSwish Hardmax Identity If InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less
LessOrEqual LinearAttention Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean
MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow
QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range
Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign RotaryEmbedding Round STFT Scan
Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus
Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh TensorScatter ThresholdedRelu Tile TopK
Transpose Trilu Unsqueeze Upsample Where Xor
"""
OPERATORS = frozenset(_OPERATORS.split())


class Rule(NamedTuple):
    """A rule a graph must keep, and what to do about a node that breaks it."""

    name: str
    demand: str
    remedy: str


RULES = {
    rule.name: rule
    for rule in (
        Rule(
            "opset",
            f"standard operators of opset {OPSETS[0]} to {OPSETS[1]}",
            f"export with opset_version {OPSETS[1]}, or convert with onnx.version_converter",
        ),
        Rule(
            "domain",
            "no operator outside the standard domain",
            "export with cache form 'static', which has standard operators only",
        ),
        Rule(
            "operator",
            "only operators that the parser knows",
            "write it with operators of exporters/rules.py",
        ),
        Rule(
            "attention-rank",
            "query, key, value and mask of an Attention have 4 dimensions",
            "reshape them to [batch, heads, tokens, size] before the node",
        ),
        Rule(
            "attention-outputs",
            "an Attention has one output",
            "keep the cache outside the node with TensorScatter, and drop its other outputs",
        ),
        Rule(
            "attention-mask",
            "an Attention has an explicit mask, and is_causal is 0",
            "pass [batch, 1, tokens, capacity], true where a token may attend",
        ),
        Rule(
            "attention-inputs",
            "an Attention has no past and no lengths beside query, key, value and mask",
            "put the cache in key and value, and the lengths in the mask",
        ),
        Rule("attention-softcap", "an Attention has no softcap", "write the soft cap out with Tanh"),
        Rule("attention-branch", "no Attention inside If, Loop or Scan", "take the node out of the branch"),
        Rule(
            "cache-capacity",
            "the cache of a TensorScatter has 4 dimensions, of which only the batch is open",
            "export with cache form 'static' and a capacity",
        ),
        Rule(
            "cache-mode",
            "a TensorScatter is linear, along axis -2",
            "write whole rows, in order",
        ),
        Rule(
            "cache-dtype",
            f"a cache is one of {', '.join(CACHE_DTYPES)}",
            "cast before the TensorScatter",
        ),
        Rule(
            "cache-alias",
            "a TensorScatter reads its cache from a graph input and is itself a graph output",
            "feed the input and return the result without a node between: they share one buffer",
        ),
        Rule("positions", "the position ids of a RotaryEmbedding are int64", "cast them to int64"),
        Rule("topk", f"TopK takes at most {TOPK_MOST} elements", "ask for fewer, or split the axis"),
        Rule("scatter", "a ScatterND has no reduction", "add before scattering"),
        Rule(
            "zero-point",
            "QuantizeLinear and DequantizeLinear are symmetric: zero points are 0",
            "quantise symmetrically",
        ),
        Rule(
            "quantised-type",
            f"QuantizeLinear and DequantizeLinear have one of {', '.join(QUANTISED)}; INT4 is for weights",
            "choose another scheme of quantisation",
        ),
        Rule(
            "device",
            "every device has the graph's types",
            "choose another scheme of quantisation, or leave the device out",
        ),
        Rule(
            "scale",
            "scales are above 0",
            "give channels of zeros a small scale, and negative scales the other sign",
        ),
        Rule(
            "blocks",
            "the axis that has blocks divides into whole ones",
            "leave the weight as it is, or choose another size",
        ),
    )
}
