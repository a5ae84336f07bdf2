//! The HTML report in a real browser: what it shows is what the document says. `CHROMIUM` names the browser
//! (`cargo xtask test` gets one); without it, the one on PATH is taken, and without that, nothing is tested, which is
//! said aloud.

mod devtools;
#[path = "../sample/mod.rs"]
mod sample;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use devtools::Browser;
use profiler::classify::{Class, Leaf};
use profiler::report::html_report;
use profiler::results::{
    CallStack, Classes, Frame, MadeBytes, Outcome, Phase, Process, Region, Results, TimelinePoint,
};
use profiler::units::{MIB, human, thousands};

/// The browser and a folder for its pages, where pictures stay to be looked at; `None` where there is no browser.
fn browser(test: &str) -> Option<(Browser, PathBuf)> {
    let executable = std::env::var_os("CHROMIUM").or_else(on_path);
    let Some(executable) = executable else {
        // Not a macro of the standard library: what those print is kept back while the test passes.
        let said = format!(
            "NOT TESTED: {test}: no browser; try `cargo xtask test`, or set CHROMIUM to a Chromium's path\n"
        );
        std::io::stderr().write_all(said.as_bytes()).unwrap();
        return None;
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("html")
        .join(test);
    std::fs::create_dir_all(&folder).unwrap();
    Some((Browser::start(&executable), folder))
}

fn on_path() -> Option<OsString> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join("chromium"))
        .find(|file| file.is_file())
        .map(PathBuf::into_os_string)
}

fn open(browser: &mut Browser, folder: &Path, results: &Results) {
    let file = folder.join("report.html");
    std::fs::write(&file, html_report(results)).unwrap();
    browser.open(&file);
}

/// 230 MiB at the peak; every figure of it another one.
fn results() -> Results {
    let mut results = sample::one_run();
    let run = &mut results.runs[0];
    let point = |seconds: f64, mib: [f64; 4], kernel: Option<u64>, spread_bytes| {
        let [stacks, heap, runtime, unclassified] = mib.map(sample::pages);
        let classes = Classes {
            stacks,
            heap,
            runtime,
            unclassified,
        };
        TimelinePoint {
            seconds,
            rss_bytes: classes.total(),
            classes: Some(classes),
            kernel_bytes: kernel,
            spread_bytes,
        }
    };
    run.timeline = vec![
        point(0.0, [0.0, 0.25, 1.25, 0.0], Some(57_344), 0),
        point(1.5, [60.0, 20.0, 5.0, 0.5], Some(20 * MIB), 4096),
        TimelinePoint {
            seconds: 3.0,
            rss_bytes: 150 * MIB,
            classes: None,
            kernel_bytes: None,
            spread_bytes: 0,
        },
        point(4.25, [195.4, 54.9, 5.7, 1.0], Some(40 * MIB), 0),
        point(10.4, [1.0, 30.0, 5.5, 0.0], Some(MIB), 0),
    ];
    let names = ["start", "launch", "plateau", "exit"];
    let bounds = [0.0, 0.4, 4.0, 9.5, 10.4];
    run.phases = names
        .into_iter()
        .zip(bounds.windows(2))
        .map(|(name, bounds)| Phase {
            name: name.to_owned(),
            from_seconds: bounds[0],
            to_seconds: bounds[1],
            counters: None,
        })
        .collect();
    run.warnings = vec!["12 events were dropped; try a larger ring".to_owned()];
    let frame = |name: &str| Frame {
        function: Some(name.to_owned()),
        module: "/usr/bin/server".to_owned(),
        offset: 4096,
        file: None,
        line: None,
    };
    run.call_stacks = vec![
        CallStack {
            frames: vec![frame("main"), frame("runtime.mallocgc")],
            cut: None,
        },
        CallStack {
            frames: vec![frame("main"), frame("runtime.newstack")],
            cut: None,
        },
    ];
    let peak = run.peak.as_mut().unwrap();
    let made = |call_stack, leaf, bytes| MadeBytes {
        tgid: 4711,
        call_stack,
        made_by: "mapped by exec".to_owned(),
        leaf,
        backing: None,
        bytes,
    };
    peak.made_by = vec![
        made(Some(1), Leaf::NativeStack, peak.classes.stacks),
        made(Some(0), Leaf::ManagedHeap, peak.classes.heap),
        made(None, Leaf::Image, peak.classes.runtime),
        made(None, Leaf::Unknown, peak.classes.unclassified),
    ];
    results
}

fn exact(bytes: u64) -> String {
    format!("{} ({} B)", human(bytes), thousands(bytes))
}

/// What the tooltip must say of a point.
fn tooltip_of(point: &TimelinePoint, phase: &str) -> String {
    let mut said = format!(
        "{:.3} s, {phase}|RSS {}",
        point.seconds,
        exact(point.rss_bytes)
    );
    match point.classes {
        Some(classes) => {
            for class in Class::ALL {
                said += &format!("|{} {}", class.name(), exact(classes.get(class)));
            }
        }
        None => said += "|classes not looked at here",
    }
    if let Some(bytes) = point.kernel_bytes {
        said += &format!("|kernel, outside RSS {}", exact(bytes));
    }
    if point.spread_bytes > 0 {
        said += &format!("|RSS moved meanwhile by {}", exact(point.spread_bytes));
    }
    said
}

/// What the tooltip says, a bar between rows; empty while it is hidden.
const TOOLTIP: &str = "(() => { const box = document.getElementById('tooltip'); if (box.hidden) return ''; \
    const rows = [...box.querySelectorAll('tr')].map((row) => [...row.cells].map((it) => it.textContent).join(' ')); \
    return [box.querySelector('strong').textContent, ...rows].join('|'); })()";

const PHASES: [&str; 5] = ["start", "launch", "launch", "plateau", "exit"];

#[test]
fn the_tooltip_tells_each_point_of_the_timeline() {
    let Some((mut browser, folder)) = browser("timeline") else {
        return;
    };
    let results = results();
    let timeline = &results.runs[0].timeline;
    for (scheme, width) in [("light", 1400), ("dark", 360)] {
        browser.prefer(scheme);
        browser.resize(width, 900);
        open(&mut browser, &folder, &results);
        browser.evaluate("document.querySelector('.plot').scrollIntoView({ behavior: 'instant', block: 'center' })");
        for (index, (point, phase)) in timeline.iter().zip(PHASES).enumerate() {
            // The line of RSS goes through every point.
            let at = browser.evaluate(&format!(
                "(() => {{ const {{ x, y }} = document.querySelector('.rss').points[{index}]; \
                 const box = document.querySelector('.plot').getBoundingClientRect(); return [box.x + x, box.y + y]; }})()"
            ));
            browser.point(at[0].as_f64().unwrap(), at[1].as_f64().unwrap());
            // At its very end there is no phase any more.
            let said = tooltip_of(point, phase).replace("10.400 s, exit", "10.400 s");
            assert_eq!(browser.text(TOOLTIP), said, "{scheme}");
        }
        browser.point(1.0, 1.0);
        assert_eq!(browser.text(TOOLTIP), "");
        assert_eq!(browser.complaints(), Vec::<String>::new());
    }
}

#[test]
fn keys_lead_from_point_to_point() {
    let Some((mut browser, folder)) = browser("keys") else {
        return;
    };
    let results = results();
    let timeline = &results.runs[0].timeline;
    open(&mut browser, &folder, &results);
    browser.press("Tab", 9);
    browser.evaluate("document.querySelector('.plot').focus()");
    browser.settle();
    assert_eq!(
        browser.text(TOOLTIP),
        tooltip_of(&timeline[3], "plateau"),
        "the peak"
    );
    browser.press("ArrowLeft", 37);
    assert_eq!(browser.text(TOOLTIP), tooltip_of(&timeline[2], "launch"));
    browser.press("Home", 36);
    assert_eq!(browser.text(TOOLTIP), tooltip_of(&timeline[0], "start"));
    let heard = browser.text("document.querySelector('.plot').getAttribute('aria-valuetext')");
    let read = tooltip_of(&timeline[0], "start")
        .replacen('|', ": ", 1)
        .replace('|', "; ");
    assert_eq!(heard, read);
    browser.press("Escape", 27);
    assert_eq!(browser.text(TOOLTIP), "");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

/// The bytes in the cells of tables below a heading.
fn figures(browser: &mut Browser, heading: &str) -> Vec<u64> {
    let figures = browser.evaluate(&format!(
        "(() => {{ const of = [...document.querySelectorAll('h3')].find((it) => it.textContent === '{heading}'); \
         return [...of.parentElement.querySelectorAll('tbody data')].map((it) => Number(it.value)); }})()"
    ));
    let figures = figures.as_array().unwrap();
    figures
        .iter()
        .map(|figure| figure.as_u64().unwrap())
        .collect()
}

#[test]
fn figures_on_the_page_are_those_of_the_document() {
    let Some((mut browser, folder)) = browser("figures") else {
        return;
    };
    let results = results();
    let run = &results.runs[0];
    let peak = run.peak.as_ref().unwrap();
    open(&mut browser, &folder, &results);

    let mut classes = Vec::new();
    for class in Class::ALL {
        classes.push(peak.classes.get(class));
        let leaves = peak.leaves.iter().filter(|leaf| leaf.class == class);
        classes.extend(leaves.map(|leaf| leaf.bytes));
    }
    classes.push(peak.rss_bytes);
    assert_eq!(figures(&mut browser, "Classes of resident memory"), classes);

    let parts = peak
        .kernel
        .parts()
        .into_iter()
        .filter_map(|(_, bytes)| bytes);
    let kernel: Vec<u64> = parts.chain(peak.kernel.measured()).collect();
    assert_eq!(figures(&mut browser, "Kernel memory, outside RSS"), kernel);

    let regions = peak
        .regions
        .iter()
        .flat_map(|region| [region.resident_bytes, region.length_bytes]);
    let regions: Vec<u64> = regions.collect();
    assert_eq!(
        figures(&mut browser, "Regions of the address space"),
        regions
    );

    let text = browser.text("document.querySelector('main').innerText");
    for said in [
        "tier C: the true peak is at most 256.0 KiB higher",
        "412 seen, 0 dropped",
        "12 events were dropped",
    ] {
        assert!(text.contains(said), "{said} in {text}");
    }
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn the_flame_graph_enlarges_what_is_clicked() {
    let Some((mut browser, folder)) = browser("flame") else {
        return;
    };
    let results = results();
    let heap = results.runs[0].peak.as_ref().unwrap().classes.heap;
    browser.resize(1400, 900);
    open(&mut browser, &folder, &results);
    let find = "[...document.querySelectorAll('.flame button')].find((it) => it.textContent === 'runtime.mallocgc')";
    let share = |browser: &mut Browser| {
        let width = browser.evaluate(&format!(
            "{find}.getBoundingClientRect().width / document.querySelector('.flame').clientWidth"
        ));
        width.as_f64().unwrap()
    };
    let whole = results.runs[0].peak.as_ref().unwrap().rss_bytes;
    let part = heap as f64 / whole as f64;
    assert!((share(&mut browser) - part).abs() < 0.002);
    browser.evaluate(&format!(
        "{find}.scrollIntoView({{ behavior: 'instant', block: 'center' }})"
    ));
    let at = browser.evaluate(&format!(
        "(() => {{ const box = {find}.getBoundingClientRect(); return [box.x + 5, box.y + 5]; }})()"
    ));
    browser.point(at[0].as_f64().unwrap(), at[1].as_f64().unwrap());
    let tooltip = browser.text(TOOLTIP);
    assert!(
        tooltip.starts_with(&format!(
            "runtime.mallocgc|resident {}|of RSS {:.1} %|class heap",
            exact(heap),
            part * 100.0
        )),
        "{tooltip}"
    );
    browser.evaluate(&format!("{find}.click()"));
    browser.settle();
    assert!(share(&mut browser) > 0.99);
    browser.press("Escape", 27);
    assert!((share(&mut browser) - part).abs() < 0.002);
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

/// Names that would end elements, attributes, scripts or lines.
const HOSTILE: &str = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)><!--\u{2028}\u{2029}&amp;]]>`${1}`";

#[test]
fn names_are_text_whatever_they_hold() {
    let Some((mut browser, folder)) = browser("hostile") else {
        return;
    };
    let mut results = results();
    results.host.cpu = HOSTILE.to_owned();
    let run = &mut results.runs[0];
    run.program = HOSTILE.to_owned();
    run.label = HOSTILE.to_owned();
    run.command = vec![HOSTILE.to_owned(); 2];
    run.version = HOSTILE.to_owned();
    run.outcome = Outcome::Failed;
    run.reason = Some(HOSTILE.to_owned());
    run.warnings = vec![HOSTILE.to_owned()];
    run.settings = vec![HOSTILE.to_owned()];
    run.phases[0].name = HOSTILE.to_owned();
    run.processes[0].executable = HOSTILE.to_owned();
    run.call_stacks[0].frames[0].function = Some(HOSTILE.to_owned());
    let peak = run.peak.as_mut().unwrap();
    peak.kernel.source = HOSTILE.to_owned();
    peak.regions[0].backing = Some(HOSTILE.to_owned());
    peak.regions[0].kind = HOSTILE.to_owned();
    // Once as the only run, once among several.
    let mut twice = results.clone();
    twice.runs.push(sample::one_run().runs.remove(0));
    for results in [results, twice] {
        open(&mut browser, &folder, &results);
        let found = browser.evaluate("[document.images.length, document.scripts.length]");
        assert_eq!(found.to_string(), "[0,2]");
        let shown = browser.evaluate(&format!(
            "[...document.querySelectorAll('td')].filter((it) => it.textContent === {}).length",
            serde_json::to_string(HOSTILE).unwrap()
        ));
        assert!(
            shown.as_u64().unwrap() >= 4,
            "process, kind, backing, version: {shown}"
        );
        assert_eq!(browser.complaints(), Vec::<String>::new());
    }
}

#[test]
fn of_many_rows_the_largest_are_shown_and_the_rest_is_summed() {
    let Some((mut browser, folder)) = browser("many") else {
        return;
    };
    let mut results = results();
    let run = &mut results.runs[0];
    let process = run.processes[0].clone();
    run.processes = (0..700)
        .map(|index| Process {
            tgid: 5000 + index,
            rss_bytes_at_peak: u64::from(index) * 4096,
            ..process.clone()
        })
        .collect();
    let peak = run.peak.as_mut().unwrap();
    let region = peak.regions[0].clone();
    peak.regions = (0..200_000_u64)
        .map(|index| Region {
            start: Some(format!("{:#x}", index << 16)),
            resident_bytes: if index < 500 { MIB } else { 4096 },
            rule: format!("rule.{}", index % 50),
            ..region.clone()
        })
        .collect();
    open(&mut browser, &folder, &results);
    let size = std::fs::metadata(folder.join("report.html")).unwrap().len();
    assert!(size < 2 * MIB, "{size} bytes");
    let text = browser.text("document.querySelector('main').innerText");
    let rest = human(199_500 * 4096);
    for said in [
        format!("the 500 largest of 200,000 rows; the rest sum to {rest}"),
        format!(
            "the 500 largest of 700 processes; the rest sum to {}",
            human(4096 * (0..200).sum::<u64>())
        ),
    ] {
        assert!(text.contains(&said), "{said}");
    }

    // A filter keeps rows with all its words.
    let rows = "[...document.getElementById('regions-0').tBodies[0].rows].filter((row) => !row.hidden).length";
    assert_eq!(browser.evaluate(rows), 500);
    browser.evaluate(
        "(() => { const input = document.querySelector('input[data-filters]'); input.value = 'RULE.7 thread'; \
         input.dispatchEvent(new Event('input')); })()",
    );
    assert_eq!(browser.evaluate(rows), 10);
    let count = browser.text("document.getElementById('regions-0-count').textContent");
    assert_eq!(count, "10 of these 500 rows, 10.0 MiB");

    // A heading sorts its column: figures from the largest on, then from the least.
    let first = "document.getElementById('processes-0').tBodies[0].rows[0].cells[0].textContent";
    assert_eq!(browser.text(first), "5699");
    browser.evaluate("document.querySelector('#processes-0 th button').click()");
    browser.evaluate("document.querySelector('#processes-0 th button').click()");
    assert_eq!(browser.text(first), "5200");
    let sorted =
        browser.text("document.querySelector('#processes-0 th').getAttribute('aria-sort')");
    assert_eq!(sorted, "ascending");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn both_schemes_and_all_widths_fit() {
    let Some((mut browser, folder)) = browser("looks") else {
        return;
    };
    for (name, results) in [
        ("one", results()),
        ("several", sample::results()),
        ("none", sample::empty()),
    ] {
        for (scheme, ground) in [("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 23, 26)")] {
            browser.prefer(scheme);
            for width in [1400, 360] {
                browser.resize(width, 900);
                open(&mut browser, &folder, &results);
                let wide = browser.evaluate("document.documentElement.scrollWidth");
                assert!(
                    wide.as_u64().unwrap() <= u64::from(width),
                    "{name}: {wide} of {width}"
                );
                let colour = "getComputedStyle(document.body).backgroundColor";
                assert_eq!(browser.text(colour), ground);
                browser.picture(&folder.join(format!("{name}-{scheme}-{width}.png")));
                // The button shows the other one.
                browser.evaluate("document.getElementById('theme').click()");
                browser.settle();
                assert_ne!(browser.text(colour), ground);
                browser.evaluate("localStorage.clear()");
                assert_eq!(browser.complaints(), Vec::<String>::new(), "{name}");
            }
        }
    }
}

#[test]
fn a_row_of_the_comparison_opens_its_run() {
    let Some((mut browser, folder)) = browser("comparison") else {
        return;
    };
    let results = sample::repeated_results();
    open(&mut browser, &folder, &results);
    let runs = browser.evaluate("document.querySelectorAll('details.run').length");
    assert_eq!(runs, 36, "one for each program and N, whatever the repeats");
    assert_eq!(
        browser.evaluate("document.querySelectorAll('.comparison li').length"),
        36
    );
    browser.evaluate("[...document.querySelectorAll('.comparison a')].find((it) => it.textContent.includes('Go')).click()");
    browser.settle();
    let open = browser.text("document.querySelector('details.run[open] > summary').textContent");
    assert!(open.starts_with("Go, 100,000 tasks "), "{open}");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}
