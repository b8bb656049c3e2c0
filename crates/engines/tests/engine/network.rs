//! What machines may reach, as the host's filters have it; on a host of its own, without an uplink. Real connections are
//! the end-to-end tests' affair.

use std::process::Command;

use sandhaus_engines::namespace::fault_points;
use sandhaus_sandbox::{
    engine::{Change, Engine, EngineError, GuestPort, MachineSpec},
    types::{NetworkPolicy, SecurityProfile},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Host, leave_the_network, sh};

fn ruleset() -> String {
    let output = Command::new("nft").args(["list", "ruleset"]).output().expect("nft is installed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The rules of the one machine there is.
fn rules_of_machine(instance: &str) -> String {
    let text = ruleset();
    let start = text.find(&format!("chain {instance}")).unwrap_or_else(|| panic!("no machine in {text}"));
    text[start..].split_once('}').expect("a chain ends").0.to_owned()
}

fn allow(networks: &[&str]) -> NetworkPolicy {
    NetworkPolicy::Allow(networks.iter().map(|network| network.parse().expect("a network")).collect())
}

fn bridged(host: &Host) -> MachineSpec {
    MachineSpec { network: NetworkPolicy::Bridge, ..host.spec(SecurityProfile::Container) }
}

#[tokio::test]
async fn what_a_machine_may_reach_changes_while_it_runs_and_outlives_the_engine() {
    leave_the_network();
    let mut host = Host::new().await;
    let spec = bridged(&host);
    let toolbox = host.up(&spec).await;
    assert!(rules_of_machine(&host.instance).contains("jump out_of_reach\n\t\taccept"), "{}", ruleset());
    let change = async |host: &Host, policy: NetworkPolicy| {
        host.engine.update(&spec.id, Change::Network(policy)).await
    };
    change(&host, allow(&["198.51.100.0/24"])).await.expect("changed");
    let listed = rules_of_machine(&host.instance);
    assert!(listed.contains("ip daddr 198.51.100.0/24 accept") && !listed.contains("\t\taccept"), "{listed}");

    // Another engine finds it as it was, even without its table.
    host.engine.shutdown().await.expect("shut down");
    let flushed = Command::new("nft").args(["flush", "ruleset"]).status().expect("nft is installed");
    assert!(flushed.success());
    host.reopen().await;
    change(&host, allow(&["198.51.100.0/24"])).await.expect("the same again");
    assert_eq!(rules_of_machine(&host.instance), listed);

    change(&host, NetworkPolicy::None).await.expect("taken away");
    assert!(!rules_of_machine(&host.instance).contains("accept"), "{}", ruleset());
    change(&host, NetworkPolicy::Bridge).await.expect("given back");
    assert!(rules_of_machine(&host.instance).contains("accept"));
    for (policy, words) in [(NetworkPolicy::Host, "host's network"), (allow(&["::/0"]), "IPv4")] {
        let refused = change(&host, policy).await.expect_err("refused");
        assert!(refused.to_string().contains(words), "{refused}");
    }
    assert_eq!(sh(&toolbox, "ls /sys/class/net | tr '\\n' ' '").await.stdout, "eth0 lo ");
    host.end().await;
    assert_eq!(ruleset(), "");
}

#[tokio::test]
async fn a_machine_without_a_network_is_given_none_while_it_runs() {
    leave_the_network();
    let host = Host::new().await;
    let spec = host.spec(SecurityProfile::Strict);
    let toolbox = host.up(&spec).await;
    assert_eq!(sh(&toolbox, "ls /sys/class/net").await.stdout, "lo\n");
    assert_eq!(sh(&toolbox, "cat /sys/class/net/lo/flags").await.stdout, "0x9\n", "up");
    host.engine.update(&spec.id, Change::Network(NetworkPolicy::None)).await.expect("it is so already");
    let refused = host.engine.update(&spec.id, Change::Network(NetworkPolicy::Bridge)).await;
    assert!(matches!(refused, Err(EngineError::Unsupported(_))), "{refused:?}");
    host.end().await;
    assert_eq!(ruleset(), "", "nothing was made that nobody needs");
}

#[tokio::test]
async fn services_are_dialled_wherever_they_listen() {
    leave_the_network();
    let host = Host::new().await;
    let spec = bridged(&host);
    let toolbox = host.up(&spec).await;
    let own = sh(&toolbox, "ip -4 -o addr show dev eth0 | sed 's/.*inet \\([0-9.]*\\).*/\\1/'").await.stdout;
    for (address, port) in [("127.0.0.1", 4001), ("[::1]", 4002), (own.trim(), 4003), ("0.0.0.0", 4004)] {
        // It has its socket when it goes into the background.
        let served = sh(&toolbox, &format!("httpd -p {address}:{port} -h /etc")).await;
        assert_eq!(served.code, 0, "{address}: {served:?}");
        let dialled = host.engine.dial(&spec.id, GuestPort::Tcp(port)).await;
        let mut stream = dialled.unwrap_or_else(|error| panic!("{address}: {error:?}"));
        stream.write_all(b"GET /hostname HTTP/1.0\r\n\r\n").await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        assert!(answer.ends_with("tested\n"), "{address}: {answer}");
    }
    let nobody = host.engine.dial(&spec.id, GuestPort::Tcp(4005)).await;
    assert!(matches!(nobody, Err(EngineError::NotFound)), "{nobody:?}");
    host.end().await;
}

#[test]
fn every_step_of_networks_has_its_points() {
    let points = fault_points();
    for step in ["table", "pair", "route", "inside", "rules", "claim", "release", "close"] {
        for moment in ["before", "after"] {
            assert!(points.contains(&format!("network.{step}.{moment}")), "{step}");
        }
    }
}
