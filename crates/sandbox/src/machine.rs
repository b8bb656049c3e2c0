//! From a sandbox and its image to the machine to start: the one place where environment, work directory and host name
//! are settled.

use sandhaus_protocol::boot::{BootConfig, Limits, Workload};

use crate::{
    engine::MachineSpec,
    types::{Env, Generation, Sandbox, SecurityProfile, Tree, WORKLOAD_HOME, WORKLOAD_ID, WORKLOAD_NAME},
};

/// Where programs are searched unless the image or the request says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where shells and processes start unless the image or the request says otherwise.
const WORKDIR: &str = "/workspace";

/// Home of root inside.
const ROOT_HOME: &str = "/root";

/// Everything resolved, nothing left to look up.
pub(crate) fn machine_spec(sandbox: &Sandbox, generation: Generation, tree: &Tree) -> MachineSpec {
    let spec = &sandbox.spec;
    MachineSpec {
        id: sandbox.id.clone(),
        generation,
        tree: tree.clone(),
        // Filled by whoever knows where it lies.
        snapshot: None,
        resources: spec.resources,
        network: spec.network.clone(),
        security: spec.security,
        readonly_root: spec.readonly_root,
        env: environment(home(spec.security, tree), &tree.config.env, &spec.env),
        workdir: workdir(spec.workdir.as_deref(), tree.config.workdir.as_deref()),
        mounts: spec.mounts.clone(),
        hostname: sandbox.id.to_string(),
        entrypoint: spec.entrypoint.clone(),
        shell: spec.shell,
        warm_shell: spec.warm_shell,
        seccomp: spec.seccomp,
        // Filled at each start, once it is sure that it is there.
        workspace: None,
    }
}

impl MachineSpec {
    /// Who the workload is. `strict` decides that itself; under `container` the image has its say, else it is root.
    pub fn workload(&self) -> Workload {
        let unprivileged = self.security == SecurityProfile::Strict;
        let (uid, gid, name, home) = match &self.tree.config.account {
            _ if unprivileged => (WORKLOAD_ID, WORKLOAD_ID, WORKLOAD_NAME, WORKLOAD_HOME),
            Some(account) if account.uid != 0 => (account.uid, account.gid, &*account.name, &*account.home),
            _ => (0, 0, "root", ROOT_HOME),
        };
        Workload { uid, gid, name: name.to_owned(), home: home.to_owned(), unprivileged }
    }

    /// What the agent inside is to know when it starts.
    pub fn boot_config(&self) -> BootConfig {
        let user = self.workload();
        BootConfig {
            sandbox_id: self.id.to_string(),
            generation: self.generation.0,
            env: environment(&user.home, &Env::new(), &self.env),
            user,
            workdir: self.workdir.clone(),
            shell: self.shell,
            entrypoint: self.entrypoint.clone(),
            warm_shell: self.warm_shell,
            limits: Limits {
                cpu_millis: Some(self.resources.cpu_millis),
                memory_bytes: Some(self.resources.memory_bytes),
            },
        }
    }
}

/// The home of whom the workload runs as: under `container` that is whom the image names, else root.
fn home(security: SecurityProfile, tree: &Tree) -> &str {
    match (security, &tree.config.account) {
        (SecurityProfile::Strict, _) => WORKLOAD_HOME,
        (SecurityProfile::Container, Some(account)) if account.uid != 0 => &account.home,
        (SecurityProfile::Container, _) => ROOT_HOME,
    }
}

/// The request's variables over the image's over our own.
fn environment(home: &str, image: &Env, request: &Env) -> Env {
    let ours = [("PATH", PATH), ("HOME", home), ("LANG", "C.UTF-8"), ("TERM", "xterm-256color")];
    let mut env: Env = ours.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    env.extend(image.clone());
    env.extend(request.clone());
    env
}

fn workdir(request: Option<&str>, image: Option<&str>) -> String {
    // An image may say "" or a relative path; only an absolute one can be started in.
    request.or(image.filter(|path| path.starts_with('/'))).unwrap_or(WORKDIR).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_goes_over_the_image_over_our_own() {
        let image = Env::from([("PATH".into(), "/opt/bin".into()), ("A".into(), "image".into())]);
        let request = Env::from([("A".into(), "request".into()), ("TERM".into(), "dumb".into())]);
        let env = environment("/home/sandbox", &image, &request);
        let expected = [
            ("A", "request"),
            ("HOME", "/home/sandbox"),
            ("LANG", "C.UTF-8"),
            ("PATH", "/opt/bin"),
            ("TERM", "dumb"),
        ];
        assert_eq!(env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn home_is_that_of_whom_the_workload_runs_as() {
        let account = |uid, home: &str| sandhaus_images::Account {
            uid,
            gid: uid,
            name: "node".to_owned(),
            home: home.to_owned(),
        };
        let tree = |account| Tree {
            layers: Vec::new(),
            binds: Vec::new(),
            config: sandhaus_images::ImageConfig { account, ..Default::default() },
            disk: None,
        };
        let node = tree(Some(account(1001, "/home/node")));
        assert_eq!(home(SecurityProfile::Strict, &node), "/home/sandbox");
        assert_eq!(home(SecurityProfile::Container, &node), "/home/node");
        assert_eq!(home(SecurityProfile::Container, &tree(None)), "/root");
        assert_eq!(home(SecurityProfile::Container, &tree(Some(account(0, "/")))), "/root");
    }

    #[test]
    fn the_work_directory_is_absolute() {
        assert_eq!(workdir(Some("/a"), Some("/b")), "/a");
        assert_eq!(workdir(None, Some("/b")), "/b");
        assert_eq!(workdir(None, Some("app")), "/workspace");
        assert_eq!(workdir(None, None), "/workspace");
    }
}
