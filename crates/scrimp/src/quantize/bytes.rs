//! The most accurate model of at most so many bytes: the weights whose layers lose least get fewer bits.
//!
//! What a layer loses with each scheme is measured with that layer alone rounded, as noise in the outputs of the model; what
//! layers lose together is taken to be the sum. Then the step with the least noise for each byte is taken until the file
//! is small enough, which finds the best choice but for the bytes that are left over (Shoham and Gersho 1988, IEEE Trans.
//! ASSP 36(9)), and steps that these bytes allow are taken back.

use scrimp_onnx::{Config, NodeRule, Quantized, Spec, sensitivity, verify};

use super::trials::Trials;
use super::{Error, Job, News, Outcome, Search, Watch, compare, first_samples, quantize};

/// Elements with fewer bits than another, the widest first; the way to a narrower one goes down from its own place.
const LADDERS: [&[&str]; 2] =
    [&["int16", "int8", "int4", "int2"], &["uint16", "uint8", "uint4", "uint2"]];

/// The schemes that a weight may get, that of the configuration first.
fn rungs(config: &Config) -> Result<Vec<Spec>, Error> {
    let top = &config.weights;
    let below = LADDERS.iter().find_map(|ladder| {
        let at = ladder.iter().position(|name| *name == top.element.name)?;
        Some(&ladder[at + 1..])
    });
    let rest = top.text.strip_prefix(top.element.name).unwrap_or_default();
    let narrower = below.unwrap_or_default().iter();
    let mut found = vec![top.clone()];
    for name in narrower {
        let spec = Spec::parse(&format!("{name}{rest}")).map_err(Error::config)?;
        if config.profile.check_weights(&spec, config.mode).is_ok() {
            found.push(spec);
        }
    }
    if found.len() == 1 {
        return Err(Error::config(format!(
            "a limit of bytes gives layers fewer bits, and {} has no scheme of fewer bits than {}",
            config.profile.name, top.text
        )));
    }
    Ok(found)
}

/// A weight that may get fewer bits.
struct Item {
    /// The place of its layer among the nodes.
    node: usize,
    /// The name of its layer.
    name: String,
    /// The noise in the outputs as a share of the signal, for each scheme.
    noise: Vec<f64>,
    /// Bytes of codes, scales and zero points, for each scheme.
    bytes: Vec<usize>,
}

/// Gives layers fewer bits until the file has at most `limit` bytes.
pub(super) fn keep(
    limit: u64,
    outcome: &mut Outcome,
    (job, search): (&Job<'_>, &mut Search),
    model: &scrimp_onnx::Model,
    trials: &mut Trials,
    watch: Watch<'_>,
) -> Result<(), Error> {
    let whole = file_bytes(&outcome.quantized);
    if whole <= limit {
        return Ok(());
    }
    let rungs = rungs(&job.config)?;
    let mut items = items(&outcome.quantized, &job.config, &rungs)?;
    measure(model, &outcome.quantized, &rungs, &mut items, (job, search), trials, watch)?;
    let mut excess = whole - limit;
    loop {
        let Some(choice) = choose(&items, excess) else {
            let saved = items.iter().map(|item| item.bytes[0] - item.bytes[rungs.len() - 1]);
            let least = whole - saved.sum::<usize>() as u64;
            return Err(Error::Bytes { limit, least });
        };
        let mut config = job.config.clone();
        let fewer = items.iter().zip(&choice).filter(|(_, rung)| **rung > 0);
        let fewer: Vec<(String, Spec)> =
            fewer.map(|(item, &rung)| (item.name.clone(), rungs[rung].clone())).collect();
        config.rules.extend(fewer.iter().map(|(name, spec)| NodeRule {
            float: false,
            weights: Some(spec.clone()),
            ..NodeRule::float(name)
        }));
        let quantized = quantize(model, &config, job, watch)?;
        let bytes = file_bytes(&quantized);
        if bytes > limit {
            // Names and nodes of a later version take some bytes, too.
            excess += bytes - limit;
            continue;
        }
        verify::loads(job.engine, &quantized.model, job.calibration)?;
        outcome.comparison = compare(&quantized, job, watch)?;
        outcome.quantized = quantized;
        outcome.fewer = fewer.into_iter().map(|(name, spec)| (name, spec.text)).collect();
        return Ok(());
    }
}

fn file_bytes(quantized: &Quantized) -> u64 {
    quantized.model.to_bytes().len() as u64
}

/// The weights of layers of the main graph that are stored as the configuration says of all.
fn items(base: &Quantized, config: &Config, rungs: &[Spec]) -> Result<Vec<Item>, Error> {
    let measurable = sensitivity::measurable(base);
    let weights = base.plan.weights.iter().zip(&base.weights);
    let mut items: Vec<Item> = Vec::new();
    for (weight, packed) in weights.filter(|(weight, _)| weight.spec.text == config.weights.text) {
        let layer = measurable.iter().find(|&&at| base.plan.nodes[at].name == weight.readers[0]);
        let Some(&node) = layer else { continue };
        let bytes = rungs
            .iter()
            .map(|spec| spec.bytes(&weight.layout, !packed.zeros.is_empty()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(Error::config)?;
        // A layer with several weights has one scheme for all of them.
        if let Some(known) = items.iter_mut().find(|item| item.node == node) {
            known.bytes.iter_mut().zip(bytes).for_each(|(all, bytes)| *all += bytes);
            continue;
        }
        let name = weight.readers[0].clone();
        items.push(Item { node, name, noise: Vec::new(), bytes });
    }
    Ok(items)
}

/// Finds the noise of each item with each scheme.
fn measure(
    model: &scrimp_onnx::Model,
    base: &Quantized,
    rungs: &[Spec],
    items: &mut [Item],
    (job, search): (&Job<'_>, &mut Search),
    trials: &mut Trials,
    watch: Watch<'_>,
) -> Result<(), Error> {
    let name = |spec: &Spec, item: &Item| format!("{} {}", spec.text, item.name);
    let known = |spec: &Spec, items: &[Item], trials: &Trials| {
        items.iter().filter(|item| trials.get(&name(spec, item)).is_some()).count()
    };
    search.layers = rungs.iter().map(|spec| items.len() - known(spec, items, trials)).sum();
    search.trials = rungs.len();
    let count = items.len();
    let total = rungs.len() * count;
    let first = first_samples(job);
    for (rung, spec) in rungs.iter().enumerate() {
        let mut rounded = None;
        let all_known = known(spec, items, trials) == count;
        if rung > 0 && !all_known {
            let config = Config { weights: spec.clone(), ..job.config.clone() };
            rounded = Some(quantize(model, &config, job, watch)?);
        }
        let quantized = rounded.as_ref().unwrap_or(base);
        let pairs = job.config.profile.pair_per_reader;
        let mut alone = None;
        for (at, item) in items.iter_mut().enumerate() {
            let trial = name(spec, item);
            if !watch(News::Stage { stage: "layers", done: rung * count + at, total }) {
                return Err(scrimp_onnx::QuantizeError::Stopped.into());
            }
            let db = if let Some(db) = trials.get(&trial) {
                db
            } else {
                if alone.is_none() {
                    alone = Some(sensitivity::Alone::new(quantized, &first, job.engine, pairs)?);
                }
                let alone = alone.as_ref().expect("made just before");
                let db = search.timed(watch, || alone.error(item.node))?.sqnr_db;
                trials.keep(trial, db)?;
                db
            };
            item.noise.push(10f64.powf(-db / 10.0));
        }
    }
    search.say(watch);
    Ok(())
}

/// The scheme of each item that takes `excess` bytes away and adds the least noise; `None` where there are not so many.
fn choose(items: &[Item], excess: u64) -> Option<Vec<usize>> {
    let mut choice = vec![0; items.len()];
    let mut best: Option<(f64, Vec<usize>)> = None;
    let mut consider = |mut choice: Vec<usize>| {
        give_back(items, &mut choice, excess);
        let noise = items.iter().zip(&choice).map(|(item, &rung)| item.noise[rung]).sum();
        if best.as_ref().is_none_or(|(least, _)| noise < *least) {
            best = Some((noise, choice));
        }
    };
    loop {
        let left = excess.saturating_sub(saved(items, &choice));
        if left == 0 {
            consider(choice);
            break;
        }
        let steps: Vec<Step> = steps(items, &choice).collect();
        // A step with little noise in all may be enough, although others have less for each byte.
        let last = steps.iter().filter(|step| step.bytes >= left);
        if let Some(step) = last.min_by(|a, b| a.noise.total_cmp(&b.noise)) {
            let mut whole = choice.clone();
            whole[step.item] = step.rung;
            consider(whole);
        }
        let cost = |step: &Step| step.noise / step.bytes as f64;
        let Some(step) = steps.iter().min_by(|a, b| cost(a).total_cmp(&cost(b))) else { break };
        choice[step.item] = step.rung;
    }
    best.map(|(_, choice)| choice)
}

/// A narrower scheme for one item, what it takes away and what it adds.
struct Step {
    item: usize,
    rung: usize,
    bytes: u64,
    noise: f64,
}

/// All that take bytes away.
fn steps(items: &[Item], choice: &[usize]) -> impl Iterator<Item = Step> {
    items.iter().zip(choice).enumerate().flat_map(|(at, (item, &now))| {
        (now + 1..item.bytes.len()).filter_map(move |rung| {
            let bytes = item.bytes[now].checked_sub(item.bytes[rung]).filter(|bytes| *bytes > 0)?;
            let noise = item.noise[rung] - item.noise[now];
            Some(Step { item: at, rung, bytes: bytes as u64, noise })
        })
    })
}

/// Bytes that a choice takes away.
fn saved(items: &[Item], choice: &[usize]) -> u64 {
    let each = items.iter().zip(choice);
    each.map(|(item, &rung)| (item.bytes[0] - item.bytes[rung]) as u64).sum()
}

/// What was saved beyond the need goes to where it takes most noise away.
fn give_back(items: &[Item], choice: &mut [usize], excess: u64) {
    loop {
        let spare = saved(items, choice) - excess;
        let back = items.iter().zip(&*choice).enumerate().flat_map(|(at, (item, &now))| {
            (0..now).filter_map(move |rung| {
                let bytes = (item.bytes[rung] - item.bytes[now]) as u64;
                let gain = item.noise[now] - item.noise[rung];
                (bytes <= spare && gain > 0.0).then_some((gain, at, rung))
            })
        });
        let Some((_, at, rung)) = back.max_by(|a, b| a.0.total_cmp(&b.0)) else { break };
        choice[at] = rung;
    }
}

#[cfg(test)]
mod tests {
    use super::{Item, choose, saved};

    fn item(noise: &[f64], bytes: &[usize]) -> Item {
        Item { node: 0, name: String::new(), noise: noise.to_vec(), bytes: bytes.to_vec() }
    }

    #[test]
    fn the_layer_that_loses_least_for_its_bytes_gets_fewer_bits() {
        let items = [
            item(&[1e-4, 1e-2, 0.5], &[100, 50, 25]),
            item(&[1e-4, 1e-3, 0.1], &[100, 50, 25]),
            item(&[1e-4, 1e-3, 0.1], &[1000, 500, 250]),
        ];
        assert_eq!(choose(&items, 0), Some(vec![0, 0, 0]));
        assert_eq!(choose(&items, 500), Some(vec![0, 0, 1]));
        assert_eq!(choose(&items, 550), Some(vec![0, 1, 1]));
        assert_eq!(choose(&items, 600), Some(vec![1, 1, 1]));
        assert_eq!(choose(&items, 900), Some(vec![2, 2, 2]));
        assert_eq!(choose(&items, 901), None);
    }

    #[test]
    fn bytes_that_are_not_needed_are_given_back() {
        // The large layer is the cheapest for each byte, and enough alone.
        let items = [item(&[0.0, 1.0], &[20, 10]), item(&[0.0, 2.0], &[2000, 1000])];
        assert_eq!(choose(&items, 10), Some(vec![1, 0]));
    }

    #[test]
    fn no_choice_is_much_better() {
        // All choices of six layers with three schemes each.
        let random = |seed: u32| seed.wrapping_mul(2_654_435_761) >> 16;
        for case in 0..50u32 {
            let items: Vec<Item> = (0..6u32)
                .map(|at| {
                    let word = |k| random(case * 64 + at * 8 + k + 1);
                    let of = |k| f64::from(word(k)) / 65536.0;
                    let size = 100 + usize::try_from(word(0) % 900).unwrap();
                    let noise = 1e-3 * of(1);
                    let more = noise + 1e-2 * of(2);
                    item(&[noise, more, more + 0.2 * of(3)], &[size, size / 2, size / 4])
                })
                .collect();
            let all: usize = items.iter().map(|item| item.bytes[0]).sum();
            for tenths in [1, 3, 6] {
                let excess = (all * tenths / 10) as u64;
                let found = choose(&items, excess).unwrap();
                let noise = |choice: &[usize]| -> f64 {
                    items.iter().zip(choice).map(|(item, &rung)| item.noise[rung]).sum()
                };
                assert!(saved(&items, &found) >= excess);
                let best = (0..3usize.pow(6))
                    .map(|code| (0..6).map(|at| code / 3usize.pow(at) % 3).collect::<Vec<_>>())
                    .filter(|choice| saved(&items, choice) >= excess)
                    .map(|choice| noise(&choice))
                    .fold(f64::INFINITY, f64::min);
                assert!(noise(&found) <= 1.3 * best, "{case}: {} and {best}", noise(&found));
            }
        }
    }
}
