//! Addresses of code → [`Frame`]s with names.

use super::{
    Frame,
    code::{Code, CodeMap},
    perf_map::PerfMap,
    unwind::{Binaries, address_in_file},
};

/// The frames at an address, outermost first: more than one where calls were inlined.
pub fn frames_at(
    address: u64,
    code: &CodeMap,
    binaries: &Binaries,
    jitted: Option<&PerfMap>,
) -> Vec<Frame> {
    let Some(mapped) = code.get(&address) else {
        return Vec::new();
    };
    let Some((binary, offset)) = address_in_file(mapped, address, binaries) else {
        return vec![Frame {
            function: jitted
                .filter(|_| mapped.inode == 0)
                .and_then(|map| map.name_at(address))
                .map(str::to_owned),
            module: module_name(mapped),
            offset: match mapped.inode {
                0 => address,
                _ => mapped.file_offset(address),
            },
            file: None,
            line: None,
        }];
    };
    let frame = |function: Option<String>, file, line| Frame {
        function,
        module: module_name(mapped),
        offset,
        file,
        line,
    };
    let mut frames = Vec::new();
    if let Some(lines) = &binary.lines
        && let Ok(mut inlined) = lines.find_frames(offset).skip_all_loads()
    {
        while let Ok(Some(found)) = inlined.next() {
            let name = found
                .function
                .and_then(|name| Some(demangled(&name.raw_name().ok()?)));
            let place = found.location.as_ref();
            let file = place.and_then(|place| place.file).map(str::to_owned);
            let line = place.and_then(|place| place.line);
            if name.is_some() || frames.is_empty() {
                frames.push(frame(name, file, line));
            }
        }
    }
    let symbol = || binary.function_at(offset).map(demangled);
    match frames.last_mut() {
        None => frames.push(frame(symbol(), None, None)),
        // A line without a function: written in assembly.
        Some(last) if last.function.is_none() => last.function = symbol(),
        Some(_) => {}
    }
    // Of a function that was split, the debug information has one part inlined into the other.
    frames.dedup_by(|outer, inner| outer.function.is_some() && outer.function == inner.function);
    frames.reverse();
    frames
}

fn module_name(code: &Code) -> String {
    match &code.name {
        Some(name) => name.to_string(),
        None => "[jitted code]".to_owned(),
    }
}

/// The name as people write it: Rust and C++, anything else as it is.
pub fn demangled(name: &str) -> String {
    // `@@GLIBC_2.2.5` is the version, not the name.
    let name = name.split("@@").next().unwrap_or(name);
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        // Without the hash.
        return format!("{rust:#}");
    }
    // Without this prefix `a` would be the type `signed char`.
    if !name.starts_with("_Z") {
        return name.to_owned();
    }
    let options = cpp_demangle::DemangleOptions::new()
        .no_params()
        .no_return_type();
    cpp_demangle::Symbol::new(name)
        .ok()
        .and_then(|symbol| symbol.demangle_with_options(&options).ok())
        .unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_people_write_them() {
        assert_eq!(
            demangled("_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE"),
            "core::fmt::Write::write_fmt"
        );
        assert_eq!(demangled("_RNvC5crate4main"), "crate::main");
        assert_eq!(
            demangled("_ZN2v88internal4Heap11AllocateRawEi"),
            "v8::internal::Heap::AllocateRaw"
        );
        assert_eq!(demangled("malloc@@GLIBC_2.2.5"), "malloc");
        assert_eq!(demangled("runtime.sysMap"), "runtime.sysMap");
        assert_eq!(demangled("main"), "main");
        assert_eq!(demangled("a"), "a", "no type");
    }

    #[test]
    fn code_of_no_file_says_what_it_is() {
        let code = |name: Option<&str>| Code {
            range: 0x1000..0x2000,
            offset: 0,
            inode: 0,
            name: name.map(Into::into),
        };
        let map = |code: Code| CodeMap::from_iter([(code.range.clone(), code)]);
        let none = Binaries::new();
        let jitted = PerfMap::parse("1100 10 Foo");
        let [frame] = &frames_at(0x1105, &map(code(None)), &none, Some(&jitted))[..] else {
            panic!("one frame");
        };
        assert_eq!(
            (frame.function.as_deref(), frame.module.as_str()),
            (Some("Foo"), "[jitted code]")
        );
        let [frame] = &frames_at(0x1105, &map(code(Some("[vdso]"))), &none, None)[..] else {
            panic!("one frame");
        };
        assert_eq!(
            (&frame.function, frame.module.as_str(), frame.offset),
            (&None, "[vdso]", 0x1105)
        );
    }
}
