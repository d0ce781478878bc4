//! Number formats from their definition: sign, exponent, mantissa.
//!
//! A code is an integer; nothing here knows a type for it but `u8` and, for
//! the twelve bits of E5M6, `u16`.

/// Field widths, bias, and how far up the finite codes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Format {
    pub exponent_bits: u32,
    pub mantissa_bits: u32,
    pub bias: i32,
    pub top: u16,
    pub infinite: bool,
}

/// Four exponent bits, three mantissa bits, no infinity.
pub const E4M3: Format = format(4, 3, 7, 0x7E, false);
/// Five exponent bits, two mantissa bits.
pub const E5M2: Format = format(5, 2, 15, 0x7B, true);
/// Twelve bits, which V3 keeps some activations in.
pub const E5M6: Format = format(5, 6, 15, 0x7BF, true);

const SCALE_BIAS: i32 = 127;
const SCALE_NAN: u8 = 0xFF;

const fn format(
    exponent_bits: u32,
    mantissa_bits: u32,
    bias: i32,
    top: u16,
    infinite: bool,
) -> Format {
    Format { exponent_bits, mantissa_bits, bias, top, infinite }
}

impl Format {
    /// The sign bit; every code below it is positive.
    pub fn sign(&self) -> u16 {
        1 << (self.exponent_bits + self.mantissa_bits)
    }

    /// The largest finite value.
    pub fn max(&self) -> f32 {
        self.value(self.top)
    }

    /// What a positive code stands for if it is read as a number.
    fn value(&self, code: u16) -> f32 {
        let exponent = code >> self.mantissa_bits;
        let mantissa = code & ((1 << self.mantissa_bits) - 1);
        let hidden = u16::from(exponent > 0) << self.mantissa_bits;
        let steps = f32::from(mantissa + hidden);
        let unit = i32::from(exponent.max(1)) - self.bias;
        steps * 2f32.powi(unit - self.mantissa_bits as i32)
    }
}

/// The `e` of `2^e <= x < 2^(e+1)`, for a positive normal number.
pub(super) fn exponent(x: f64) -> i32 {
    (x.to_bits() >> 52) as i32 - 1023
}

/// The nearest integer of a small positive number, ties to the even one.
fn nearest(x: f64) -> f64 {
    // Beside 2^52 there is no room for a fraction, so the sum rounds.
    let no_room = 2f64.powi(52);
    (x + no_room) - no_room
}

// ANCHOR: encode
/// The code nearest to a value, ties to the even mantissa.
///
/// A mantissa that rounds up to the next power of two carries into the
/// exponent by the same addition. Beyond the largest value comes infinity
/// where there is one, else the largest value; NaN has all bits set.
pub fn encode(x: f32, format: Format) -> u16 {
    let sign = u16::from(x.is_sign_negative()) * format.sign();
    if x.is_nan() {
        return sign + format.sign() - 1;
    }
    let limit = format.value(format.top + u16::from(format.infinite));
    let size = f64::from(x.abs().min(limit));
    let lowest = 1 - format.bias;
    let e = exponent(size.max(2f64.powi(lowest)));
    let steps = size * 2f64.powi(format.mantissa_bits as i32 - e);
    let above = ((e - lowest) as u16) << format.mantissa_bits;
    sign + nearest(steps) as u16 + above
}
// ANCHOR_END: encode

// ANCHOR: decode
/// The value of a code, exactly.
///
/// # Panics
/// If the code has more bits than the format.
pub fn decode(code: u16, format: Format) -> f32 {
    let (sign, fits) = (code & format.sign(), code < 2 * format.sign());
    assert!(fits, "code {code} has more bits than the format");
    let magnitude = code - sign;
    let size = match magnitude {
        finite if finite <= format.top => format.value(finite),
        next if format.infinite && next == format.top + 1 => f32::INFINITY,
        _ => f32::NAN,
    };
    if sign > 0 {
        -size
    } else {
        size
    }
}
// ANCHOR_END: decode

// ANCHOR: cast
/// Clamp, then encode: nothing but NaN leaves the range.
pub fn cast(x: f32, format: Format) -> u16 {
    encode(x.clamp(-format.max(), format.max()), format)
}
// ANCHOR_END: cast

/// The UE8M0 code of the next power of two up, as a scale must round.
///
/// Zero takes the smallest; negative and infinite values become NaN.
pub fn encode_scale(x: f32) -> u8 {
    let wide = f64::from(x);
    if x < 0.0 || !x.is_finite() {
        return SCALE_NAN;
    }
    if x == 0.0 {
        return 0;
    }
    let e = exponent(wide);
    let up = e + i32::from(wide > 2f64.powi(e));
    (up + SCALE_BIAS).clamp(0, i32::from(SCALE_NAN) - 1) as u8
}

/// The power of two that a UE8M0 code stands for.
pub fn decode_scale(code: u8) -> f32 {
    match code {
        SCALE_NAN => f32::NAN,
        _ => 2f64.powi(i32::from(code) - SCALE_BIAS) as f32,
    }
}
