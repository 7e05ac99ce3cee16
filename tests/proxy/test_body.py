"""Bodies: bombs, odd codings, and JSON that two parsers read differently (B1 to B4, B13)."""

import gzip
import json
import subprocess
import sys
import zlib
from typing import Any

import brotli  # type: ignore[import-untyped]  # publishes no types
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.body import Unreadable, decode, read_json, read_text

MIB = 1024 * 1024


def unpack(raw: bytes, coding: str | None, bytes_max: int = MIB, ratio_max: int = 100) -> Any:
    return decode(raw, coding, bytes_max=bytes_max, ratio_max=ratio_max)


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def zstd_stream(data: bytes) -> bytes:
    """Without the content size in the frame's header."""
    stream = zstandard.ZstdCompressor().compressobj()
    return stream.compress(data) + stream.flush()


PACK = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstd,
}
BODY = b'{"tool":"search","arguments":{"q":"a b c"}}' * 100


@pytest.mark.parametrize("coding", PACK)
@given(data=st.binary(max_size=4000))
@settings(max_examples=30, deadline=None)
def test_what_was_packed_is_unpacked(coding: str, data: bytes) -> None:
    assert unpack(PACK[coding](data), coding) == data


@pytest.mark.parametrize("coding", [None, "", "identity", "IDENTITY", " identity "])
def test_no_coding_changes_nothing(coding: str | None) -> None:
    assert unpack(BODY, coding) == BODY


@pytest.mark.parametrize("coding", ["GZip", "x-gzip", "\tgzip "])
def test_names_of_codings_have_no_case(coding: str) -> None:
    assert unpack(gzip.compress(BODY), coding) == BODY


@pytest.mark.parametrize(
    "coding",
    [
        "foo",
        "rot13",
        "hex",
        "utf-7",
        "base64",
        "bz2",
        "zip",
        "compress",
        "x-compress",
        "gzip, gzip",
        "gzip,identity",
        "identity, gzip",
        ",gzip",
        "gzip;q=1",
        "gzip\x0b",
        "*",
        "chunked",
        "aws-chunked",
    ],
)
def test_b1_b2_any_other_coding_is_unreadable(coding: str) -> None:
    for raw in (BODY, gzip.compress(BODY), b""):
        assert isinstance(unpack(raw, coding), Unreadable)


@pytest.mark.parametrize("coding", PACK)
def test_b1_what_is_not_what_it_says_is_unreadable(coding: str) -> None:
    packed = PACK[coding](BODY)
    broken = {
        "garbage": b"garbage garbage garbage",
        "empty": b"",
        "cut": packed[:-1],
        "cut in the middle": packed[: len(packed) // 2],
        "surplus": packed + b"x",
        "twice": packed + packed,
        "a flipped bit": bytes([packed[0] ^ 0x40]) + packed[1:],
    }
    for name, raw in broken.items():
        assert isinstance(unpack(raw, coding), Unreadable), name


def test_deflate_without_its_header_is_unreadable() -> None:
    assert isinstance(unpack(raw_deflate(BODY), "deflate"), Unreadable)


def test_a_wrong_checksum_is_unreadable() -> None:
    packed = bytearray(gzip.compress(BODY))
    packed[-5] ^= 1
    assert isinstance(unpack(bytes(packed), "gzip"), Unreadable)


@pytest.mark.parametrize("coding", PACK)
def test_the_limit_is_the_largest_size_that_passes(coding: str) -> None:
    data = bytes(range(256)) * 400
    packed = PACK[coding](data)
    assert unpack(packed, coding, bytes_max=len(data), ratio_max=10_000) == data
    answer = unpack(packed, coding, bytes_max=len(data) - 1, ratio_max=10_000)
    assert answer == Unreadable("the body is too large")
    assert unpack(data, None, bytes_max=len(data)) == data
    assert unpack(data, None, bytes_max=len(data) - 1) == Unreadable("the body is too large")


@pytest.mark.parametrize("coding", PACK)
def test_the_ratio_is_bounded_except_for_small_bodies(coding: str) -> None:
    assert unpack(PACK[coding](b"a" * 60_000), coding) == b"a" * 60_000
    answer = unpack(PACK[coding](b"a" * MIB), coding, ratio_max=10)
    assert answer == Unreadable("the body unpacks too far")


def test_a_zstd_window_beyond_8_mib_is_unreadable() -> None:
    wide = zstandard.ZstdCompressionParameters(window_log=27, strategy=1)
    stream = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    packed = stream.compress(BODY) + stream.flush()
    assert isinstance(unpack(packed, "zstd"), Unreadable)
    assert unpack(zstd_stream(BODY), "zstd") == BODY


@pytest.mark.parametrize("coding", [*PACK, "identity", "foo"])
@given(raw=st.binary(max_size=300))
@settings(max_examples=50, deadline=None)
def test_whatever_bytes_come_nothing_raises(coding: str, raw: bytes) -> None:
    answer = unpack(raw, coding, bytes_max=1000)
    assert isinstance(answer, Unreadable) or len(answer) <= 1000


BOMB = """
import gzip, resource, sys, zlib
import brotli, zstandard
from proxy.body import Unreadable, decode, read_json

coding, zeros = sys.argv[1], 80 * 1024 * 1024
block = bytes(1024 * 1024)
stream = {
    "gzip": lambda: zlib.compressobj(9, wbits=31), "deflate": lambda: zlib.compressobj(9),
    "br": lambda: brotli.Compressor(quality=5, lgwin=22),
    "zstd": lambda: zstandard.ZstdCompressor(level=3).compressobj(),
}[coding]()
add = stream.process if coding == "br" else stream.compress
end = stream.finish if coding == "br" else stream.flush
raw = b"".join([*(add(block) for _ in range(80)), end()])
decode(raw[: len(raw) // 2] + b"warm", coding, bytes_max=1024, ratio_max=10**9)
open("/proc/self/clear_refs", "w").write("5")
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
before = peak()
answer = decode(raw, coding, bytes_max=1024 * 1024, ratio_max=10**9)
print(len(raw), isinstance(answer, Unreadable), peak() - before)
"""


@pytest.mark.parametrize("coding", PACK)
def test_b13_a_bomb_costs_less_than_20_mb(coding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BOMB, coding], capture_output=True, text=True, check=True
    )
    sent, refused, grown_kib = done.stdout.split()
    assert int(sent) < 100_000
    assert refused == "True"
    assert int(grown_kib) < 20_000


CHARSETS = {
    "absent": (None, True),
    "utf-8": ("utf-8", True),
    "upper case": ("UTF-8", True),
    "quoted": ('"utf-8"', True),
    "ascii": ("us-ascii", True),
    "b3 nope": ("nope", False),
    "latin 1": ("iso-8859-1", False),
    "utf-16": ("utf-16", False),
    "b2 utf-7": ("utf-7", False),
    "b2 hex": ("hex", False),
    "empty": ("", False),
    "b2 unicode_escape": ("unicode_escape", False),
}


@pytest.mark.parametrize(("charset", "readable"), CHARSETS.values(), ids=CHARSETS)
def test_b3_only_utf_8_is_read(charset: str | None, readable: bool) -> None:
    assert isinstance(read_text(b"text", charset=charset), str) is readable
    assert (read_json(b"[1]", charset=charset) == [1]) is readable


@pytest.mark.parametrize(
    "data", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"a\x80"]
)
def test_b3_bytes_that_are_not_utf_8_are_unreadable(data: bytes) -> None:
    assert read_text(data) == Unreadable("not utf-8")
    assert read_json(b'"' + data + b'"') == Unreadable("not utf-8")


Y_CASES = {
    "array_empty": b"[]",
    "array_spaces": b"[   ]",
    "array_mixed": b'[null, 1, "1", {}]',
    "array_trailing_space": b"[2] ",
    "array_leading_newline": b"\n[2]",
    "object_empty": b"{}",
    "object_empty_key": b'{"":0}',
    "object_escaped_nul_in_key": b'{"foo\\u0000bar": 42}',
    "object_newlines": b'{\n"a": "b"\n}',
    "object_similar_keys": b'{"a":1,"A":2}',
    "number_zero": b"0",
    "number_minus_zero": b"-0",
    "number_exponent": b"[1E22,1e+2,0e1,-1.5e-2]",
    "number_close_to_zero": b"[-0.00000000000000000000000000000000000000000000000000000000000001]",
    "number_large_int": b"123456789012345678901234567890",
    "string_accepted_surrogate_pair": b'["\\uD801\\udc37"]',
    "string_two_pairs": b'["\\ud83d\\ude39\\ud83d\\udc8d"]',
    "string_escapes": b'["\\"\\\\\\/\\b\\f\\n\\r\\t"]',
    "string_double_escape_a": b'["\\\\a"]',
    "string_escaped_backslash_before_u": b'["\\\\ud800"]',
    "string_utf8": '["€𝄞"]'.encode(),
    "string_u2028": '["\u2028\u2029"]'.encode(),
    "string_del": b'["a\x7fa"]',
    "string_noncharacter": '["\U0010ffff"]'.encode(),
    "string_brackets": b'["[[[[{{{{", "\\"[[["]',
    "lonely_true": b"true",
    "lonely_null": b"null",
    "lonely_string": b'"asd"',
    "structure_whitespace": b"\t[ 1 ,\r\n2 ]\n",
}
N_CASES = {
    "array_1_true_without_comma": b"[1 true]",
    "array_colon": b'["": 1]',
    "array_comma": b"[,]",
    "array_double_comma": b"[1,,2]",
    "array_extra_close": b'["x"]]',
    "array_trailing_comma": b"[1,]",
    "array_unclosed": b'["x"',
    "array_just_minus": b"[-]",
    "array_number_and_several": b"[1,,]",
    "array_newlines_unclosed": b'["a",\n4\n,1,',
    "array_star": b"[*]",
    "incomplete_true": b"[tru]",
    "number_plus": b"[+1]",
    "number_leading_zero": b"[012]",
    "number_minus_leading_zero": b"[-012]",
    "number_dot_start": b"[.5]",
    "number_dot_end": b"[1.]",
    "number_no_exponent": b"[1e]",
    "number_hex": b"[0x1]",
    "number_nan": b"[NaN]",
    "number_minus_nan": b"[-NaN]",
    "number_infinity": b"[Infinity]",
    "number_minus_infinity": b"[-Infinity]",
    "number_inf": b"[Inf]",
    "number_full_width": "[１]".encode(),
    "number_space": b"[1 000]",
    "number_underscore": b"[1_000]",
    "number_overflow": b"[1e400]",
    "number_minus_overflow": b"[-1e9999]",
    "number_5000_digits": b"[" + b"1" * 5000 + b"]",
    "number_5000_decimals": b"[0." + b"1" * 5000 + b"]",
    "object_trailing_comma": b'{"id":0,}',
    "object_single_quotes": b"{'a':0}",
    "object_no_colon": b'{"a" b}',
    "object_unquoted_key": b"{a: 1}",
    "object_non_string_key": b"{1:1}",
    "object_double_colon": b'{"x"::"b"}',
    "object_missing_value": b'{"a":',
    "object_comment": b'{"a":"b"}/**/',
    "object_duplicate_key": b'{"a":1,"a":2}',
    "object_duplicate_equal": b'{"a":1,"a":1}',
    "object_duplicate_escaped": b'{"a":1,"\\u0061":2}',
    "object_duplicate_deep": b'[{"x":{"a":1,"b":2,"a":3}}]',
    "string_control": b'["a\x00a"]',
    "string_newline": b'["new\nline"]',
    "string_tab": b'["\t"]',
    "string_bad_escape": b'["\\a"]',
    "string_hex_escape": b'["\\x00"]',
    "string_short_unicode": b'["\\u00A"]',
    "string_bad_unicode": b'["\\uqqqq"]',
    "string_unclosed": b'["asd',
    "string_escaped_end": b'["\\"]',
    "string_half_surrogate": b'["\\uD800"]',
    "string_low_surrogate": b'["\\uDC00"]',
    "string_half_then_text": b'["\\uD800abc"]',
    "string_reversed_pair": b'["\\uDC37\\uD801"]',
    "string_half_in_key": b'{"\\ud800":1}',
    "string_single_quote": b"['single']",
    "string_invalid_utf8": b'["\xff"]',
    "string_overlong": b'["\xc0\xaf"]',
    "string_utf8_surrogate": b'["\xed\xa0\x80"]',
    "structure_empty": b"",
    "structure_space": b" ",
    "structure_bom": b"\xef\xbb\xbf{}",
    "structure_utf16le": b"[\x00]\x00",
    "structure_utf16_bom": b"\xff\xfe[\x00]\x00",
    "structure_nul": b"[1]\x00",
    "structure_two": b"{}{}",
    "structure_trailing_hash": b"[1]#",
    "structure_formfeed": b"[\x0c]",
    "structure_nbsp": "[\u00a0]".encode(),
    "structure_word_joiner": "[\u2060]".encode(),
    "structure_capital": b"[True]",
    "structure_open_brackets": b"[" * 200_000,
    "structure_open_objects": b'{"":' * 100_000,
    "structure_deep": b"[" * 65 + b"]" * 65,
    "structure_deep_after_string": b'["[\\"",' + b"[" * 64 + b"]" * 65,
    "structure_only_close": b"]",
    "structure_unclosed_comment": b"/*",
    "structure_ascii_nul": b"\x00",
}


@pytest.mark.parametrize("data", Y_CASES.values(), ids=Y_CASES)
def test_b4_good_json_is_read_as_everyone_reads_it(data: bytes) -> None:
    value = read_json(data)
    assert not isinstance(value, Unreadable)
    assert value == json.loads(data)


@pytest.mark.parametrize("data", N_CASES.values(), ids=N_CASES)
def test_b4_bad_json_is_unreadable(data: bytes) -> None:
    answer = read_json(data)
    assert isinstance(answer, Unreadable)
    assert answer.why.islower()
    assert answer.why.isascii()


def test_the_depth_is_counted_exactly() -> None:
    assert read_json(b"[" * 64 + b"]" * 64) != Unreadable("deeper than 64 levels")
    assert read_json(b"[" * 65 + b"]" * 65) == Unreadable("deeper than 64 levels")
    assert read_json(b"[[]]", depth_max=1) == Unreadable("deeper than 1 levels")
    assert read_json(b'["[[[["]', depth_max=1) == ["[[[["]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(VALUES, st.booleans())
@settings(max_examples=150, deadline=None)
def test_what_was_written_is_read(value: Any, ascii_only: bool) -> None:
    assert read_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=60) | st.text('[]{}":,\\u0dDeE+-.0 \n', max_size=40).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_whatever_comes_as_json_nothing_raises_and_nothing_odd_passes(data: bytes) -> None:
    value = read_json(data)
    if not isinstance(value, Unreadable):
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
