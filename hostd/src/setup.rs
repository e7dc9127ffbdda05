//! From a configuration to a kernel: what it starts with, and what changes in place.

use crate::config::{ConfigError, HostSpec, RouteSpec};
use crate::host::Shared;
use ringlab_kernel::dev::net_device::IfIndex;
use ringlab_kernel::{Config, Kernel};
use ringlab_ring::pool::Pool;
use std::net::Ipv4Addr;

const IP_FORWARD: &str = "net.ipv4.ip_forward";

/// What the kernel starts with.
pub fn kernel_config(spec: &HostSpec, pool: Pool) -> Config {
    Config { seed: spec.seed, cpus: spec.cpus, ip_forward: spec.ip_forward, udp_backlog: spec.udp_backlog, pool }
}

/// Makes a host what `new` says: sysctls, routes, names. `old` is what it was; `None` if it has just started.
///
/// # Errors
/// [`ConfigError::Invalid`] names what the kernel refused. The host is then what it was, but for
/// the sysctls before the one refused.
pub fn apply(shared: &Shared, old: Option<&HostSpec>, new: &HostSpec) -> Result<(), ConfigError> {
    let mut kernel = shared.kernel();
    for (name, value) in &new.sysctls {
        if old.is_none_or(|o| o.sysctls.get(name) != Some(value)) {
            kernel.sysctl_set(name, value).map_err(|e| invalid("sysctls", e.to_string()))?;
        }
    }
    if old.is_some_and(|o| o.ip_forward != new.ip_forward) && !new.sysctls.contains_key(IP_FORWARD) {
        kernel.sysctl_set(IP_FORWARD, if new.ip_forward { "1" } else { "0" }).map_err(|e| invalid("ip_forward", e.to_string()))?;
    }
    change_routes(&mut kernel, old.map_or(&[], |o| &o.routes), &new.routes)?;
    drop(kernel);
    shared.set_hosts(new.hosts.clone());
    Ok(())
}

/// Removes what is no longer there, then adds what is new; undoes it if the kernel refuses.
fn change_routes(kernel: &mut Kernel, old: &[RouteSpec], new: &[RouteSpec]) -> Result<(), ConfigError> {
    let gone: Vec<&RouteSpec> = old.iter().filter(|r| !new.contains(r)).collect();
    for route in &gone {
        delete(kernel, route);
    }
    let mut added: Vec<&RouteSpec> = Vec::new();
    for route in new.iter().filter(|r| !old.contains(r)) {
        if let Err(error) = add(kernel, route) {
            added.into_iter().for_each(|route| delete(kernel, route));
            for route in gone {
                // It was there before, so the kernel takes it again.
                let _ = add(kernel, route);
            }
            return Err(error);
        }
        added.push(route);
    }
    Ok(())
}

fn add(kernel: &mut Kernel, route: &RouteSpec) -> Result<(), ConfigError> {
    let (prefix, via, dev) = parts(kernel, route);
    kernel.add_route(prefix, via, dev, route.metric).map_err(|errno| {
        let via = route.via.map_or(String::new(), |via| format!(" via {via}"));
        invalid("routes", format!("{}{via}: {errno}", route.prefix))
    })
}

fn delete(kernel: &mut Kernel, route: &RouteSpec) {
    let (prefix, via, dev) = parts(kernel, route);
    if kernel.del_route(prefix, via, dev, route.metric).is_err() {
        tracing::warn!(prefix = %route.prefix, "a route to remove was not there");
    }
}

fn parts(kernel: &Kernel, route: &RouteSpec) -> ((Ipv4Addr, u8), Ipv4Addr, Option<IfIndex>) {
    let dev = route.dev.as_ref().and_then(|name| kernel.stats().interfaces.iter().find(|i| &i.name == name).map(|i| i.index));
    ((route.prefix.network(), route.prefix.prefix_len()), route.via.unwrap_or(Ipv4Addr::UNSPECIFIED), dev)
}

fn invalid(field: &str, problem: String) -> ConfigError {
    ConfigError::Invalid { field: field.to_owned(), problem }
}
