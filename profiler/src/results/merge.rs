//! Several documents as one, where that would be true.

use super::Results;

/// All runs in the order of the documents; `None` for no document. A run that another one has the place of
/// (program, N and load) is a further repeat. The error says what stands against it: one document has one
/// machine.
pub fn merge(documents: Vec<Results>) -> Result<Option<Results>, &'static str> {
    let mut documents = documents.into_iter();
    let Some(mut all) = documents.next() else {
        return Ok(None);
    };
    for other in documents {
        if other.host != all.host {
            return Err(
                "they were measured on different machines, or with different settings or versions: \
                 expected one machine; give each file by itself, or use `profiler compare`",
            );
        }
        for mut run in other.runs {
            let same = all.runs.iter().filter(|it| {
                (&it.program, it.tasks) == (&run.program, run.tasks)
                    && (it.stack_depth_bytes, it.payload_bytes)
                        == (run.stack_depth_bytes, run.payload_bytes)
            });
            if let Some(last) = same.map(|it| it.repeat).max() {
                run.repeat = last + 1;
            }
            all.runs.push(run);
        }
    }
    all.slopes = super::slopes::slopes(&all);
    Ok(Some(all))
}
