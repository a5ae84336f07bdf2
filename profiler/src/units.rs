//! Sizes as people read them. JSON carries bytes; everything shown to a person goes through here.

/// Bytes of one page on x86-64, the only architecture supported.
pub const PAGE: u64 = 4096;
/// Bytes of one KiB.
pub const KIB: u64 = 1024;
/// Bytes of one MiB.
pub const MIB: u64 = 1024 * 1024;

/// Rounds down to a page boundary.
pub const fn page_floor(address: u64) -> u64 {
    address & !(PAGE - 1)
}

/// Rounds up to a page boundary (wraps to 0 past the last page of the address space).
pub const fn page_ceil(address: u64) -> u64 {
    address.wrapping_add(PAGE - 1) & !(PAGE - 1)
}

/// `bytes` in MiB with one decimal and no unit, for table columns headed "MiB".
pub fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / MIB as f64)
}

/// `bytes` with the unit that suits its size: `512 B`, `12.0 KiB`, `46.2 MiB`, `2.47 GiB`.
pub fn human(bytes: u64) -> String {
    let value = bytes as f64;
    if bytes < KIB {
        format!("{bytes} B")
    } else if bytes < MIB {
        format!("{:.1} KiB", value / KIB as f64)
    } else if bytes < 1024 * MIB {
        format!("{:.1} MiB", value / MIB as f64)
    } else {
        format!("{:.2} GiB", value / (1024.0 * MIB as f64))
    }
}

/// A size as people write it: `512`, `64K`, `1.5 GiB`, `200MB`. K, M, G and T are powers of 1024, with `iB` or
/// without; with `B` alone (kB, MB, ...) they are powers of 1000. `None` for anything else.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text
        .find(|it: char| !it.is_ascii_digit() && it != '.')
        .unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    let unit = text[end..].trim_start().to_ascii_lowercase();
    let power = |letter: char| "kmgt".find(letter).map(|place| place as i32 + 1);
    let mut letters = unit.chars();
    let factor = match letters.next() {
        None => 1.0,
        Some('b') if unit == "b" => 1.0,
        Some(letter) => match letters.as_str() {
            "" | "ib" => 1024_f64.powi(power(letter)?),
            "b" => 1000_f64.powi(power(letter)?),
            _ => return None,
        },
    };
    let bytes = (number * factor).round();
    (bytes < u64::MAX as f64).then_some(bytes as u64)
}

/// An integer with thousands separators: `100,000`.
pub fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A figure of which three digits matter: `0.52`, `26.5`, `1,163`.
pub fn three_digits(value: f64) -> String {
    match value {
        value if value >= 100.0 => thousands(value.round() as u64),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_carry_the_unit_that_suits_them() {
        assert_eq!(human(512), "512 B");
        assert_eq!(human(12 * KIB), "12.0 KiB");
        assert_eq!(human(48_444_211), "46.2 MiB");
        assert_eq!(human(2_652_155_085), "2.47 GiB");
        assert_eq!(mib(48_444_211), "46.2");
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let read = ["512", "64K", "1.5 GiB", "200MB", "3 kB", "7B", "2tib"].map(parse_size);
        let bytes = [512, 64 << 10, 3 << 29, 200_000_000, 3000, 7, 2 << 40];
        assert_eq!(read, bytes.map(Some));
        for wrong in [
            "",
            "M",
            "-5M",
            "5 MiBs",
            "1.2.3",
            "12 parsecs",
            "5i",
            "1e400T",
        ] {
            assert_eq!(parse_size(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn pages_round_both_ways() {
        assert_eq!((page_floor(4097), page_ceil(4097)), (4096, 8192));
        assert_eq!((page_floor(4096), page_ceil(4096)), (4096, 4096));
    }

    #[test]
    fn thousands_are_separated() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(100_000), "100,000");
        assert_eq!(thousands(1_000_000), "1,000,000");
    }

    #[test]
    fn three_digits_matter() {
        let shown = [0.523, 26.48, 123.4, 1163.2].map(three_digits);
        assert_eq!(shown, ["0.52", "26.5", "123", "1,163"]);
    }
}
