//! smoke
use profiler::probes::attach::Probes;
#[test]
fn smoke() {
    let probes = match Probes::attach_with_ledger(1 << 20) {
        Ok(p) => p,
        Err(e) => panic!("{e}"),
    };
    println!("{:?}", probes.ledger.as_ref().unwrap().bytes().state);
}
