//! `-P NAME VALUES` and `--runs K`: one command at several values of a parameter, and how often.

use profiler::units::thousands;

/// A number in the command that is to have several values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// What stands in braces in the command.
    pub name: String,
    /// In the order in which they are run.
    pub values: Vec<u64>,
}

/// One run to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Command and arguments, the value in its place.
    pub command: Vec<String>,
    /// Value of the parameter, where there is one.
    pub value: Option<u64>,
    /// 0 for the first run of this value.
    pub repeat: u32,
}

impl Parameter {
    /// From the two words after `-P`; the error is a sentence.
    pub fn parse(name: &str, values: &str) -> Result<Parameter, String> {
        let is_word = |text: &str| {
            let mut letters = text.chars();
            letters.all(|it| it.is_alphanumeric() || it == '_' || it == '-') && !text.is_empty()
        };
        if !is_word(name) {
            return Err(format!(
                "`{name}` is no name for a parameter: expected letters and digits, as in `-P N 1,1000,100000`"
            ));
        }
        let parsed: Result<Vec<u64>, _> = values.split(',').map(|it| it.trim().parse()).collect();
        let values = parsed.map_err(|_| {
            format!(
                "`{values}` is no list of values for {name}: expected whole numbers, as in `-P {name} 1,1000,100000`"
            )
        })?;
        let repeated = |value: &u64| values.iter().filter(|it| *it == value).count() > 1;
        if let Some(value) = values.iter().find(|value| repeated(value)) {
            return Err(format!(
                "{value} stands twice among the values of {name}: expected each once; --runs K repeats all"
            ));
        }
        Ok(Parameter {
            name: name.to_owned(),
            values,
        })
    }

    fn placeholder(&self) -> String {
        format!("{{{}}}", self.name)
    }
}

/// All runs: every value once, then every value again, so that what is interrupted has seen each. The error
/// is a sentence.
pub fn plan(
    command: &[String],
    parameter: Option<&Parameter>,
    runs: u32,
) -> Result<Vec<Planned>, String> {
    let planned = |value: Option<u64>, command: Vec<String>| {
        move |repeat| Planned {
            command: command.clone(),
            value,
            repeat,
        }
    };
    let of_values: Vec<_> = match parameter {
        None => vec![planned(None, command.to_vec())],
        Some(parameter) => {
            let placeholder = parameter.placeholder();
            if !command.iter().any(|word| word.contains(&placeholder)) {
                return Err(format!(
                    "{placeholder} is nowhere in the command: expected it where the value is to stand, as in \
                     `-P {} 1,1000 -- COMMAND --count {placeholder}`",
                    parameter.name
                ));
            }
            let at = |value: &u64| {
                let words = command.iter();
                let words = words.map(|word| word.replace(&placeholder, &value.to_string()));
                planned(Some(*value), words.collect())
            };
            parameter.values.iter().map(at).collect()
        }
    };
    let repeats = 0..runs;
    Ok(repeats
        .flat_map(|repeat| of_values.iter().map(move |planned| planned(repeat)))
        .collect())
}

impl Planned {
    /// What it is, for people: `conns = 1,000, run 2 of 3`.
    pub fn title(&self, parameter: Option<&Parameter>, runs: u32) -> String {
        let value = self
            .value
            .zip(parameter)
            .map(|(value, parameter)| format!("{} = {}", parameter.name, thousands(value)));
        let run = (runs > 1).then(|| format!("run {} of {runs}", self.repeat + 1));
        let parts: Vec<String> = value.into_iter().chain(run).collect();
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn each_value_is_run_once_before_any_is_run_again() {
        let parameter = Parameter::parse("n", "1,20").unwrap();
        let plan = plan(&words("serve --conns={n} {n}"), Some(&parameter), 2).unwrap();
        let told: Vec<(String, Option<u64>, u32)> = plan
            .iter()
            .map(|it| (it.command.join(" "), it.value, it.repeat))
            .collect();
        let expected = [
            ("serve --conns=1 1", 1, 0),
            ("serve --conns=20 20", 20, 0),
            ("serve --conns=1 1", 1, 1),
            ("serve --conns=20 20", 20, 1),
        ];
        let expected = expected.map(|(command, n, repeat)| (command.to_owned(), Some(n), repeat));
        assert_eq!(told, expected);
        assert_eq!(plan[3].title(Some(&parameter), 2), "n = 20, run 2 of 2");
    }

    #[test]
    fn without_a_parameter_the_command_is_as_it_was_typed() {
        let plan = plan(&words("awk {print}"), None, 1).unwrap();
        assert_eq!(plan.len(), 1);
        assert_eq!(
            (plan[0].command.join(" "), plan[0].value),
            ("awk {print}".into(), None)
        );
        assert_eq!(plan[0].title(None, 1), "");
    }

    #[test]
    fn what_cannot_be_meant_is_said() {
        let error = |name, values| Parameter::parse(name, values).unwrap_err();
        assert!(error("N", "1,many").starts_with("`1,many` is no list of values for N: expected"));
        assert!(error("N", "").contains("whole numbers"));
        assert!(error("", "1").contains("no name"));
        assert!(error("N", "5,1,5").starts_with("5 stands twice"));
        let parameter = Parameter::parse("N", "1").unwrap();
        let sentence = plan(&words("serve N"), Some(&parameter), 1).unwrap_err();
        assert!(
            sentence.starts_with("{N} is nowhere in the command"),
            "{sentence}"
        );
    }
}
