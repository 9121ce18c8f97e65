"""The generator's specification once more, in plain Python, one number at a time: no NumPy, nothing shared.

A float64 sum, difference or product of two float32 numbers, rounded to float32, is the correctly rounded float32 result
(53 >= 2 * 24 + 2 bits), so `struct` is all the float32 arithmetic needed. Run this file to write golden.json; so the
golden vectors do not come from the code they test.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

__all__ = ["CASES", "f32", "normal_one", "philox", "write_golden"]

LOG2 = "1.7155acp+0 -1.713832p-1 1.eada34p-2 -1.784f4ap-2 1.49e2f4p-2 -1.a7199ap-3"
NORMAL = """1.d5a82cp+1 -1.69e130p-3 -1.db940cp-9 -1.fe7fa0p-14 -1.42b7f4p-19 1.d87992p-23 1.0bda1ap-25 1.664a8cp-29
            1.304d04p-32 1.c3d276p-37 -1.cb85d2p-40 -1.560942p-43 1.398a3cp-49 1.8aa0e2p-52"""


def f32(x: float) -> float:
    """x rounded to the nearest float32."""
    return struct.unpack("<f", struct.pack("<f", x))[0]


def bits(x: float) -> int:
    return struct.unpack("<i", struct.pack("<f", x))[0]


def pattern(x: float) -> str:
    """The bit pattern of fl32(x), eight hexadecimal digits."""
    return f"{bits(x) % 2**32:08x}"


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    c, k = counter, key
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = ((second >> 32) ^ c[1] ^ k[0], second % 2**32, (first >> 32) ^ c[3] ^ k[1], first % 2**32)
        k = ((k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32)
    return c


def polynomial(text: str, x: float) -> float:
    numbers = [float.fromhex(word.replace("1.", "0x1.", 1)) for word in text.split()]
    total = numbers.pop()
    while numbers:
        total = f32(f32(total * x) + numbers.pop())
    return total


def normal_one(seed: int, step: int, sample: int, tensor: int, i: int) -> float:
    word = philox((i // 4, tensor, step, sample), (seed % 2**32, seed // 2**32))[i % 4]
    u = f32(f32((word >> 9) * 2.0**-23) + 2.0**-24)
    v = f32(1 - u)
    q = bits(f32(u * v))
    e = (q - 0x3F3504F3) >> 23
    t = f32(struct.unpack("<f", struct.pack("<i", q - (e << 23)))[0] - 1)
    y = f32(f32(polynomial(LOG2, t) * t) + (e + 13))
    return f32(f32(u - v) * polynomial(NORMAL, y))


CASES = [  # seed, step, sample, tensor, start, count
    (0, 0, 0, 0, 0, 8),
    (1, 0, 0, 0, 0, 8),
    (0, 1, 0, 0, 0, 8),
    (0, 0, 1, 0, 0, 8),
    (0, 0, 0, 1, 0, 8),
    (42, 1000, 3, 0xDEADBEEF, 0, 33),
    (42, 1000, 3, 0xDEADBEEF, 1, 7),
    (42, 1000, 3, 0xDEADBEEF, 6, 1),
    (2**64 - 1, 2**32 - 1, 2**32 - 1, 2**32 - 1, 2**34 - 9, 9),
    (0x0123456789ABCDEF, 7, 0, 0x9E3779B9, 2**33 + 3, 13),
    (1 << 32, 5, 2, 77, 32765, 6),
]


def write_golden() -> None:
    cases = []
    for case in CASES:
        seed, step, sample, tensor, start, count = case
        z = [normal_one(seed, step, sample, tensor, i) for i in range(start, start + count)]
        weight = [f32((i % 5 - 2) * 0.37) for i in range(count)]
        scale, decay = f32(1e-3), f32(0.999)
        cases.append(
            {
                "seed": seed,
                "step": step,
                "sample": sample,
                "tensor": tensor,
                "start": start,
                "count": count,
                "normal": [pattern(x) for x in z],
                "perturb": [pattern(w + f32(scale * x)) for w, x in zip(weight, z, strict=True)],
                "perturb_": [pattern(f32(decay * w) + f32(scale * x)) for w, x in zip(weight, z, strict=True)],
            }
        )
    long = (20231123, 9, 1, 0x51ED270B, 2, 100_003)
    raw = b"".join(struct.pack("<f", normal_one(*long[:4], long[4] + i)) for i in range(long[5]))
    golden = {
        "generator_version": 1,
        "about": "uint32 bit patterns of float32 results. weight[i] = fl32((i % 5 - 2) * 0.37), scale 1e-3 and decay "
        "0.999 rounded to float32; seeds need 64-bit integers. long: sha256 of the little-endian bytes of normal().",
        "cases": cases,
        "long": dict(zip(("seed", "step", "sample", "tensor", "start", "count"), long, strict=True))
        | {"sha256": hashlib.sha256(raw).hexdigest()},
    }
    (Path(__file__).parent / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    write_golden()
