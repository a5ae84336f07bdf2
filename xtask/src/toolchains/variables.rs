//! Names in braces, as in `{build}/release/tokio`, and what stands for them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

/// Names and their values.
#[derive(Clone, Debug, Default)]
pub struct Variables(BTreeMap<String, String>);

impl Variables {
    /// Gives `name` a value; the last one counts.
    pub fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_owned(), value.to_owned());
    }

    /// The value of `name`.
    #[cfg(test)]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Takes over all of `other`.
    pub fn extend(&mut self, other: &Variables) {
        self.0.extend(
            other
                .0
                .iter()
                .map(|(name, value)| (name.clone(), value.clone())),
        );
    }

    /// `template` with every `{name}` replaced by its value.
    pub fn fill(&self, template: &str) -> Result<String> {
        let mut filled = String::new();
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, remaining) = after
                .split_once('}')
                .with_context(|| format!("no closing brace in {template:?}"))?;
            let Some(value) = self.0.get(name) else {
                let known: Vec<_> = self.0.keys().map(String::as_str).collect();
                bail!(
                    "unknown name {{{name}}} in {template:?}, expected one of {}",
                    known.join(", ")
                );
            };
            filled.push_str(before);
            filled.push_str(value);
            rest = remaining;
        }
        filled.push_str(rest);
        Ok(filled)
    }

    /// [`Self::fill`] for each word of a command.
    pub fn fill_all(&self, templates: &[String]) -> Result<Vec<String>> {
        templates
            .iter()
            .map(|template| self.fill(template))
            .collect()
    }

    /// [`Self::fill`] for each value of an environment.
    pub fn fill_map(
        &self,
        templates: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>> {
        templates
            .iter()
            .map(|(name, template)| Ok((name.clone(), self.fill(template)?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_replaced_and_unknown_ones_refused() {
        let mut variables = Variables::default();
        variables.set("build", "/b");
        variables.set("go", "/usr/bin/go");
        assert_eq!(
            variables.fill("{build}/x-{go}").unwrap(),
            "/b/x-/usr/bin/go"
        );
        assert_eq!(
            variables.fill("{biuld}/x").unwrap_err().to_string(),
            "unknown name {biuld} in \"{biuld}/x\", expected one of build, go"
        );
        assert!(variables.fill("{build").is_err());
    }
}
