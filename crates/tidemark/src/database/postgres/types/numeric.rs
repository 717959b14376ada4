//! The binary form of `numeric`: digits of base 10,000 with weight, sign and scale.
//!
//! Four 16-bit numbers lead: how many digits, the power of 10,000 of the first, the sign, and
//! how many decimals are shown. It is the form that `numeric_send` writes.

const POSITIVE: u16 = 0x0000;
const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const INFINITY: u16 = 0xD000;
const NEGATIVE_INFINITY: u16 = 0xF000;

/// Appends the decimal text of a binary number; `None` if the bytes are none.
pub fn print(bytes: &[u8], out: &mut String) -> Option<()> {
    let (header, digits) = bytes.split_at_checked(8)?;
    let part = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let (count, weight, sign, scale) = (part(0), part(2) as i16, part(4), part(6));
    if digits.len() != usize::from(count) * 2 {
        return None;
    }
    match sign {
        POSITIVE => {}
        NEGATIVE => out.push('-'),
        NAN => {
            out.push_str("NaN");
            return Some(());
        }
        INFINITY => {
            out.push_str("Infinity");
            return Some(());
        }
        NEGATIVE_INFINITY => {
            out.push_str("-Infinity");
            return Some(());
        }
        _ => return None,
    }
    let digit = |power: i32| {
        let at = i32::from(weight) - power;
        let at = usize::try_from(at).ok().filter(|at| *at < usize::from(count))?;
        Some(u16::from_be_bytes([digits[at * 2], digits[at * 2 + 1]]))
    };
    let mut is_leading = true;
    for power in (0..=i32::from(weight)).rev() {
        let four = digit(power).unwrap_or(0);
        if four > 9999 {
            return None;
        }
        match is_leading {
            true if four == 0 => continue,
            true => out.push_str(&four.to_string()),
            false => out.push_str(&format!("{four:04}")),
        }
        is_leading = false;
    }
    if is_leading {
        out.push('0');
    }
    if scale > 0 {
        out.push('.');
        let end = out.len() + usize::from(scale);
        let mut power = -1;
        while out.len() < end {
            let four = digit(power).unwrap_or(0);
            if four > 9999 {
                return None;
            }
            out.push_str(&format!("{four:04}"));
            power -= 1;
        }
        out.truncate(end);
    }
    Some(())
}

/// Appends the binary form of a canonical decimal; `None` if it has too many digits.
pub fn write(text: &str, out: &mut Vec<u8>) -> Option<()> {
    let mut put = |count: u16, weight: i16, sign: u16, scale: u16| {
        for part in [count, weight as u16, sign, scale] {
            out.extend_from_slice(&part.to_be_bytes());
        }
    };
    let special = match text {
        "NaN" => Some(NAN),
        "Infinity" => Some(INFINITY),
        "-Infinity" => Some(NEGATIVE_INFINITY),
        _ => None,
    };
    if let Some(sign) = special {
        put(0, 0, sign, 0);
        return Some(());
    }
    let (sign, unsigned) = match text.strip_prefix('-') {
        Some(unsigned) => (NEGATIVE, unsigned),
        None => (POSITIVE, text),
    };
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let scale = u16::try_from(fraction.len()).ok()?;
    // Groups of four digits to both sides of the point.
    let lead = (4 - whole.len() % 4) % 4;
    let trail = (4 - fraction.len() % 4) % 4;
    let zeros = |count: usize| std::iter::repeat_n(b'0', count);
    let decimal: Vec<u8> =
        zeros(lead).chain(whole.bytes()).chain(fraction.bytes()).chain(zeros(trail)).collect();
    let value = |four: &[u8]| four.iter().fold(0u16, |sum, byte| sum * 10 + u16::from(byte - b'0'));
    let groups: Vec<u16> = decimal.chunks(4).map(value).collect();
    let first = groups.iter().position(|group| *group != 0);
    let Some(first) = first else {
        put(0, 0, POSITIVE, scale);
        return Some(());
    };
    let last = groups.iter().rposition(|group| *group != 0).expect("a group is not zero");
    let weight = ((whole.len() + lead) / 4) as i64 - 1 - first as i64;
    put(u16::try_from(last - first + 1).ok()?, i16::try_from(weight).ok()?, sign, scale);
    for group in &groups[first..=last] {
        out.extend_from_slice(&group.to_be_bytes());
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::value::is_decimal;
    use proptest::prelude::*;

    fn there_and_back(text: &str) -> String {
        let (mut bytes, mut printed) = (Vec::new(), String::new());
        write(text, &mut bytes).unwrap();
        print(&bytes, &mut printed).unwrap();
        printed
    }

    #[test]
    fn decimals_keep_their_digits_and_scale() {
        for text in [
            "0",
            "0.000",
            "1",
            "-1",
            "1.50",
            "10000",
            "100000000.00000001",
            "0.0001",
            "0.00010",
            "-0.00000000000000000005",
            "9999",
            "99999999",
            "123456789012345678901234567890.123",
            "NaN",
            "Infinity",
            "-Infinity",
        ] {
            assert_eq!(there_and_back(text), text);
        }
    }

    #[test]
    fn a_known_number_has_the_server_s_bytes() {
        let mut bytes = Vec::new();
        write("12345.678", &mut bytes).unwrap();
        // What `numeric_send(12345.678)` gives.
        assert_eq!(bytes, [0, 3, 0, 1, 0, 0, 0, 3, 0, 1, 0x09, 0x29, 0x1a, 0x7c]);
    }

    proptest! {
        #[test]
        fn every_decimal_comes_back(text in "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,40})?") {
            prop_assume!(is_decimal(&text));
            prop_assert_eq!(there_and_back(&text), text);
        }

        #[test]
        fn no_bytes_break_the_reader(bytes: Vec<u8>) {
            print(&bytes, &mut String::new());
        }
    }
}
