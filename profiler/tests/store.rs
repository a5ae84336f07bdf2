//! `results.json` on disk.

mod sample;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use profiler::results::store::{StoreError, ensure_writable, read, write};

#[test]
fn what_is_written_is_read_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("results.json");
    for results in [
        sample::empty(),
        sample::results(),
        sample::repeated_results(),
    ] {
        write(&results, &path, None).unwrap();
        assert_eq!(read(&path).unwrap(), results);
    }
}

#[test]
fn writing_replaces_the_file_and_leaves_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("results.json");
    fs::write(&path, "old").unwrap();
    write(&sample::one_run(), &path, None).unwrap();
    let names: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["results.json"]);
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o600, 0o600);
    // Whatever the umask is, it holds for this file as for any other.
    let other = directory.path().join("other");
    fs::write(&other, "").unwrap();
    assert_eq!(mode, fs::metadata(&other).unwrap().permissions().mode());
}

#[test]
fn a_failed_write_leaves_the_old_file_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("results.json");
    fs::create_dir(&path).unwrap(); // a directory cannot be replaced by a file
    assert!(matches!(
        write(&sample::empty(), &path, None),
        Err(StoreError::Io { .. })
    ));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn another_schema_version_is_called_that() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("results.json");
    fs::write(&path, r#"{"schema_version": 7, "everything": "else"}"#).unwrap();
    let error = read(&path).unwrap_err();
    assert!(matches!(
        error,
        StoreError::Version {
            seen: 7,
            expected: 1,
            ..
        }
    ));
    let said = error.to_string();
    assert!(
        said.ends_with("has results schema version 7, but this profiler reads version 1"),
        "{said}"
    );
}

#[test]
fn broken_and_missing_files_are_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("results.json");
    assert!(matches!(
        read(&path),
        Err(StoreError::Io { action: "read", .. })
    ));
    for broken in ["", "{", "[]", r#"{"schema_version": 1}"#] {
        fs::write(&path, broken).unwrap();
        assert!(
            matches!(read(&path), Err(StoreError::Malformed { .. })),
            "{broken}"
        );
    }
}

#[test]
fn an_output_directory_is_made_and_left_empty() {
    let directory = tempfile::tempdir().unwrap();
    let wanted = directory.path().join("plots/latest");
    ensure_writable(&wanted, None).unwrap();
    ensure_writable(&wanted, None).unwrap();
    assert_eq!(fs::read_dir(&wanted).unwrap().count(), 0);
}

#[test]
fn a_directory_that_cannot_be_written_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(ensure_writable(&file, None).is_err(), "a file");
    assert!(
        ensure_writable(&file.join("below"), None).is_err(),
        "below a file"
    );
    assert!(
        ensure_writable("/proc/self/nothing".as_ref(), None).is_err(),
        "a file system without files of ours"
    );
}

#[test]
fn files_made_as_root_go_to_the_invoking_user() {
    let directory = tempfile::tempdir().unwrap();
    let me = fs::metadata(directory.path()).unwrap();
    // Root can give files away; anyone else only to themselves.
    let owner = if me.uid() == 0 {
        (12345, 23456)
    } else {
        (me.uid(), me.gid())
    };
    let plots = directory.path().join("plots");
    ensure_writable(&plots.join("latest"), Some(owner)).unwrap();
    let path = plots.join("latest/results.json");
    write(&sample::empty(), &path, Some(owner)).unwrap();
    for made in [&plots, &plots.join("latest"), &path] {
        let metadata = fs::metadata(made).unwrap();
        assert_eq!(
            (metadata.uid(), metadata.gid()),
            owner,
            "{}",
            made.display()
        );
    }
    assert_eq!(
        fs::metadata(directory.path()).unwrap().uid(),
        me.uid(),
        "what was there before stays as it was"
    );
}

/// Names of all fields below `value`.
fn fields<'a>(value: &'a serde_json::Value, found: &mut std::collections::BTreeSet<&'a str>) {
    match value {
        serde_json::Value::Object(object) => {
            for (name, value) in object {
                found.insert(name);
                fields(value, found);
            }
        }
        serde_json::Value::Array(array) => array.iter().for_each(|value| fields(value, found)),
        _ => {}
    }
}

#[test]
fn every_field_is_documented() {
    let document = include_str!("../../docs/results.md");
    let json = serde_json::to_value(sample::results()).unwrap();
    let mut names = std::collections::BTreeSet::new();
    fields(&json, &mut names);
    let missing: Vec<_> = names
        .into_iter()
        .filter(|name| !document.contains(&format!("`{name}`")))
        .collect();
    assert_eq!(missing, Vec::<&str>::new());
}
