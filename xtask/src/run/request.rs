//! What the user asked for, checked before anything starts.

use anyhow::{Context, Result, bail};

/// Reads a list such as `1,10000,100000`.
pub fn task_counts(text: &str) -> Result<Vec<u64>> {
    sorted(text, task_count)
}

fn task_count(word: &str) -> Result<u64> {
    const EXPECTED: &str =
        "expected whole numbers from 1 up with commas between them, as in `--tasks 1,10000,100000`";
    let plain: String = word.chars().filter(|&digit| digit != '_').collect();
    match plain.parse() {
        Ok(0) => bail!("--tasks: 0 tasks use no memory; {EXPECTED}"),
        Ok(count) => Ok(count),
        Err(_) if plain.starts_with('-') => {
            bail!("--tasks: {word} is negative; {EXPECTED}")
        }
        Err(_) => bail!("--tasks: `{word}` is not a number of tasks; {EXPECTED}"),
    }
}

/// Reads a list such as `0,1024,8192`; the name is that of the option.
pub fn byte_counts(option: &str, text: &str) -> Result<Vec<u64>> {
    sorted(text, |word| byte_count(option, word))
}

/// The numbers of a list with commas, each once.
fn sorted(text: &str, number: impl Fn(&str) -> Result<u64>) -> Result<Vec<u64>> {
    let numbers = text.split(',').map(|word| number(word.trim()));
    let mut numbers = numbers.collect::<Result<Vec<_>>>()?;
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

fn byte_count(option: &str, word: &str) -> Result<u64> {
    let plain: String = word.chars().filter(|&digit| digit != '_').collect();
    plain.parse().with_context(|| {
        format!(
            "{option}: `{word}` is not a number of bytes; expected whole numbers with commas between them, as in \
             `{option} 0,1024,8192`"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_sorted_and_told_once() {
        assert_eq!(
            task_counts("100000,1, 10_000,1").unwrap(),
            [1, 10_000, 100_000]
        );
    }

    #[test]
    fn each_bad_count_has_its_own_sentence() {
        let refused = |text| task_counts(text).unwrap_err().to_string();
        assert!(refused("0").starts_with("--tasks: 0 tasks use no memory; expected whole numbers"));
        assert!(refused("1,-5").starts_with("--tasks: -5 is negative; "));
        assert!(refused("many").starts_with("--tasks: `many` is not a number of tasks; "));
        assert!(refused("").starts_with("--tasks: `` is not a number of tasks; "));
        assert!(refused("1e6").starts_with("--tasks: `1e6` is not a number of tasks; "));
        assert!(refused("99999999999999999999").contains("is not a number of tasks"));
    }

    #[test]
    fn bytes_are_sorted_and_may_be_none() {
        let read = |text| byte_counts("--payload", text);
        assert_eq!(read("8192,0, 1_024,0").unwrap(), [0, 1_024, 8_192]);
        let refused = format!("{}", read("1k").unwrap_err());
        assert!(refused.starts_with("--payload: `1k` is not a number of bytes; expected"));
        assert!(read("-1").is_err() && read("").is_err());
    }
}
