//! Which CPU a node's processes run on.
//!
//! A hand-off between two processes costs 2 µs on one CPU and 40 µs between two,
//! so whoever hands frames to each other shares a CPU, until that CPU is full.

use ringlab_proto::topology::Placement;

/// A lab of at most so many nodes fits on one CPU.
const SMALL: usize = 4;

/// The CPU of each of `nodes` nodes, as an index into `load`.
///
/// `links` are pairs of node numbers; `load` has, for each CPU that may be used,
/// the nodes of other labs on it. Same arguments, same answer.
pub fn place(policy: Placement, nodes: usize, links: &[(usize, usize)], load: &[usize]) -> Vec<usize> {
    assert!(!load.is_empty(), "a machine has a CPU");
    let mut load = load.to_vec();
    match policy {
        Placement::Pack => vec![idlest(&load); nodes],
        Placement::Spread => (0..nodes)
            .map(|_| {
                let cpu = idlest(&load);
                load[cpu] += 1;
                cpu
            })
            .collect(),
        Placement::Auto if nodes <= SMALL => vec![idlest(&load); nodes],
        Placement::Auto => clusters(nodes, links, &mut load),
    }
}

/// Fills one CPU after the other with nodes that are connected, at most `ceil(nodes / CPUs)` on each.
fn clusters(nodes: usize, links: &[(usize, usize)], load: &mut [usize]) -> Vec<usize> {
    let room = nodes.div_ceil(load.len());
    let mut neighbours = vec![Vec::new(); nodes];
    for &(a, b) in links {
        neighbours[a].push(b);
        neighbours[b].push(a);
    }
    let mut cpu_of = vec![None; nodes];
    let mut free = (0..load.len()).collect::<Vec<_>>();
    for _ in 0..nodes.div_ceil(room) {
        let slot = (0..free.len()).min_by_key(|&slot| (load[free[slot]], free[slot])).expect("nodes / room is at most the number of CPUs");
        let cpu = free.swap_remove(slot);
        // Links of each node into the cluster on this CPU.
        let mut pull = vec![0usize; nodes];
        for _ in 0..room {
            // The node that the cluster pulls most; among equals that with fewest links left to cut, then the first.
            let next = (0..nodes).filter(|&n| cpu_of[n].is_none()).max_by_key(|&n| {
                let open = neighbours[n].iter().filter(|&&m| cpu_of[m].is_none()).count();
                (pull[n], std::cmp::Reverse(open), std::cmp::Reverse(n))
            });
            let Some(next) = next else { break };
            cpu_of[next] = Some(cpu);
            load[cpu] += 1;
            for &m in &neighbours[next] {
                pull[m] += 1;
            }
        }
    }
    cpu_of.into_iter().map(|cpu| cpu.expect("every node is in a cluster")).collect()
}

fn idlest(load: &[usize]) -> usize {
    (0..load.len()).min_by_key(|&cpu| (load[cpu], cpu)).expect("a machine has a CPU")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(cpus: &[usize], cpu: usize) -> usize {
        cpus.iter().filter(|&&c| c == cpu).count()
    }

    #[test]
    fn small_lab_shares_the_idlest_cpu() {
        assert_eq!(place(Placement::Auto, 2, &[(0, 1)], &[0, 0]), [0, 0]);
        assert_eq!(place(Placement::Auto, 4, &[(0, 1)], &[3, 1]), [1; 4]);
    }

    #[test]
    fn spread_uses_all_cpus_and_pack_one() {
        assert_eq!(place(Placement::Spread, 4, &[], &[0, 0]), [0, 1, 0, 1]);
        assert_eq!(place(Placement::Pack, 9, &[], &[0, 0]), [0; 9]);
    }

    #[test]
    fn large_lab_is_cut_where_it_hangs_together_least() {
        // Two triangles of three, joined by one link.
        let links = [(0, 2), (0, 4), (2, 4), (1, 3), (1, 5), (3, 5), (4, 1)];
        let cpus = place(Placement::Auto, 6, &links, &[0, 0]);
        assert_eq!(cpus[0], cpus[2]);
        assert_eq!(cpus[0], cpus[4]);
        assert_eq!(cpus[1], cpus[3]);
        assert_eq!(cpus[1], cpus[5]);
        assert_ne!(cpus[0], cpus[1]);
    }

    #[test]
    fn no_cpu_has_more_than_its_share() {
        let star = (1..=50).map(|host| (0, host)).collect::<Vec<_>>();
        let cpus = place(Placement::Auto, 51, &star, &[0, 0]);
        assert_eq!((on(&cpus, 0), on(&cpus, 1)), (26, 25));
        let cpus = place(Placement::Auto, 5, &[], &[0; 8]);
        assert!((0..8).all(|cpu| on(&cpus, cpu) <= 1));
    }
}
