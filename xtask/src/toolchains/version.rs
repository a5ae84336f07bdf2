//! Version numbers as programs print them.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// A dotted version number; a missing part counts as zero, so that 21 equals 21.0.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Version(Vec<u64>);

impl Version {
    /// The first number in `text`, with its dotted parts: `go version go1.27.3 linux/amd64` gives 1.27.3.
    pub fn first_in(text: &str) -> Option<Self> {
        let start = text.find(|c: char| c.is_ascii_digit())?;
        let number = &text[start..];
        let end = number
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(number.len());
        number[..end].trim_end_matches('.').parse().ok()
    }

    fn significant(&self) -> &[u64] {
        let end = self
            .0
            .iter()
            .rposition(|&part| part != 0)
            .map_or(0, |last| last + 1);
        &self.0[..end]
    }
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split('.')
            .map(|part| part.parse())
            .collect::<Result<_, _>>()
            .map(Self)
            .map_err(|_| format!("version is {text:?}, expected numbers with dots between them"))
    }
}

impl TryFrom<String> for Version {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<_> = self.0.iter().map(u64::to_string).collect();
        f.write_str(&parts.join("."))
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.significant() == other.significant()
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        self.significant().partial_cmp(other.significant())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn parts_compare_as_numbers() {
        assert!(version("1.9") < version("1.10"));
        assert!(version("21") > version("17.0.15"));
        assert!(version("21") == version("21.0.0"));
        assert!(version("3.11") < version("3.11.2"));
    }

    #[test]
    fn the_first_number_of_an_answer_counts() {
        for (answer, expected) in [
            ("go version go1.27.3 linux/amd64", "1.27.3"),
            ("openjdk 25.0.2 2026-01-20 LTS", "25.0.2"),
            ("v20.20.2\n", "20.20.2"),
            ("Erlang/OTP 25 [erts-13.1.5] [source]", "25"),
            ("version 3.\n", "3"),
        ] {
            assert_eq!(Version::first_in(answer).unwrap().to_string(), expected);
        }
        assert!(Version::first_in("no number here").is_none());
    }
}
