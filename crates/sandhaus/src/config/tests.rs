use super::*;

fn with(file: &str, environment: &[(&str, &str)]) -> Result<(Config, Vec<String>)> {
    loaded(file, environment).map(|loaded| (loaded.config, loaded.warnings))
}

fn loaded(file: &str, environment: &[(&str, &str)]) -> Result<Loaded> {
    let environment =
        environment.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
    combine(Some(("test.yaml", file)), &environment)
}

#[test]
fn nothing_configured_gives_the_documented_figures() {
    let (config, warnings) = with("", &[]).unwrap();
    assert_eq!(config, Config::default());
    assert!(warnings.is_empty());
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.resources.cpu_millis, 1000);
    assert_eq!(config.resources.memory_bytes, 512 << 20);
    assert_eq!(config.resources.pids, 256);
    assert_eq!(config.session_ttl.as_secs(), 1800);
    assert_eq!(config.exec_timeout_max_ms, 120_000);
    assert!(config.readonly_root);
    assert_eq!(config.security, SecurityProfile::Strict);
}

#[test]
fn every_key_is_read_from_the_file() {
    let (config, warnings) = with(
        "listen: '0.0.0.0:9000'\napi_key: secret\ndata_dir: /data\ndefault_image: python\n\
         allowed_images: [python, base]\nqemu: {enabled: false, binary: /opt/qemu, accelerator: tcg}\ninsecure_registries: ['registry.lan:5000']\nsession_ttl_seconds: 60\nsandboxes_max: 7\ndefaults:\n  cpu_limit: 0.5\n  \
         mem_limit_mb: 64\n  pids_limit: 32\n  disk_limit_mb: 128\n  max_exec_timeout_ms: 1000\n  \
         readonly_rootfs: false\n  shell_prefer: sh\n  security_profile: container\n  exec_mode: stateless\n  \
         network_mode: bridge\nsecurity: {seccomp: mvp}\nnetwork:\n  subnet: 10.9.0.0/16\n  \
         allow_private: [10.1.0.0/16]\n  resolvers: [10.1.0.1]\npool:\n  enabled: true\n  images: {python: 3}\n\
         workspace: {enabled: true, persist_by_default: true, quota_mb: 5}\ndashboard: {enabled: false, secure_cookie: true}\n\
         cgroup: /system.slice/x.service\nrunner: {enabled: true, listen: '127.0.0.1:3006'}\n\
         agent: {upgrade: never, rescue: on, executable: /opt/agent}\n",
        &[],
    )
    .unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    let name = |text: &str| ImageName::parse(text).unwrap();
    let wanted = Config {
        listen: "0.0.0.0:9000".parse().unwrap(),
        api_key: Some(ApiKey("secret".to_owned())),
        data_dir: "/data".into(),
        default_image: name("python"),
        default_engine: "namespace".to_owned(),
        qemu: QemuSettings {
            enabled: false,
            binary: Some("/opt/qemu".into()),
            accelerator: Acceleration::Tcg,
        },
        allowed_images: vec![name("python"), name("base")],
        insecure_registries: vec!["registry.lan:5000".to_owned()],
        session_ttl: Duration::from_secs(60),
        sandboxes_max: 7,
        resources: Resources { cpu_millis: 500, memory_bytes: 64 << 20, pids: 32, disk_bytes: 128 << 20 },
        exec_timeout_max_ms: 1000,
        readonly_root: false,
        shell: ShellPreference::Sh,
        security: SecurityProfile::Container,
        seccomp: Seccomp::Mvp,
        exec_mode: ExecMode::Stateless,
        network: NetworkPolicy::Bridge,
        net: NetworkConfig {
            subnet: "10.9.0.0/16".parse().unwrap(),
            allow_private: vec!["10.1.0.0/16".parse().unwrap()],
            resolvers: vec!["10.1.0.1".parse().unwrap()],
        },
        pool: PoolConfig { enabled: true, images: BTreeMap::from([(name("python"), 3)]) },
        workspaces: WorkspaceConfig {
            enabled: true,
            persist_by_default: true,
            quota_bytes: 5 << 20,
            ..WorkspaceConfig::default()
        },
        dashboard: false,
        dashboard_cookie: CookieTransport::Secure,
        cgroup: Some("/system.slice/x.service".into()),
        snapshots: SnapshotSettings::default(),
        runner: RunnerSettings { enabled: true, listen: "127.0.0.1:3006".parse().unwrap() },
        agent: AgentSettings {
            upgrade: AgentUpgrade::Never,
            rescue: RescueDoor::Open,
            executable: Some("/opt/agent".into()),
        },
    };
    assert_eq!(config, wanted);
}

#[test]
fn every_key_is_read_from_the_environment_under_both_names() {
    let values = [
        ("LISTEN", "127.0.0.1:1"),
        ("API_KEY", "k"),
        ("DATA_DIR", "/d"),
        ("DEFAULT_IMAGE", "i"),
        ("ALLOWED_IMAGES", "i, j"),
        ("DEFAULT_ENGINE", "qemu"),
        ("SESSION_TTL_SECONDS", "5"),
        ("SANDBOXES_MAX", "6"),
        ("CPU_LIMIT", "2"),
        ("MEM_LIMIT_MB", "8"),
        ("PIDS_LIMIT", "9"),
        ("QEMU_ENABLED", "false"),
        ("QEMU_BINARY", "/opt/qemu"),
        ("QEMU_ACCELERATOR", "kvm"),
        ("DISK_LIMIT_MB", "10"),
        ("MAX_EXEC_TIMEOUT_MS", "11"),
        ("READONLY_ROOTFS", "false"),
        ("SHELL_PREFER", "sh"),
        ("SECURITY_PROFILE", "container"),
        ("SECCOMP", "off"),
        ("EXEC_MODE", "stateless"),
        ("NETWORK_MODE", "bridge"),
        ("NETWORK_SUBNET", "10.9.0.0/16"),
        ("NETWORK_ALLOW_PRIVATE", "10.1.0.0/16,10.2.0.0/16"),
        ("NETWORK_RESOLVERS", "10.1.0.1"),
        ("POOL_ENABLED", "true"),
        ("POOL_IMAGES", "python=2,base=1"),
        ("WORKSPACE_ENABLED", "true"),
        ("WORKSPACE_PERSIST_BY_DEFAULT", "true"),
        ("WORKSPACE_QUOTA_MB", "5"),
        ("DASHBOARD_ENABLED", "false"),
        ("DASHBOARD_SECURE_COOKIE", "true"),
        ("INSECURE_REGISTRIES", "registry.example:5000, other"),
        ("CGROUP", "/system.slice/x.service"),
        ("RUNNER_ENABLED", "true"),
        ("SNAPSHOTS_STORE", "s3://bucket/prefix"),
        ("SNAPSHOTS_ENDPOINT", "https://store.example:9000"),
        ("SNAPSHOTS_REGION", "eu-1"),
        ("SNAPSHOTS_ACCESS_KEY_ID", "id"),
        ("SNAPSHOTS_SECRET_ACCESS_KEY", "secret"),
        ("SNAPSHOTS_PLAIN_HTTP", "true"),
        ("SNAPSHOTS_OWNER", "root"),
        ("SNAPSHOTS_MODE", "0640"),
        ("RUNNER_LISTEN", "127.0.0.1:3006"),
        ("AGENT_UPGRADE", "never"),
        ("AGENT_RESCUE", "on"),
        ("AGENT_EXECUTABLE", "/opt/agent"),
    ];
    let effective = KEYS.iter().filter(|key| key.ignored.is_none()).count();
    assert_eq!(values.len(), effective, "a key without a test");
    for prefix in ENV_PREFIXES {
        for (env, value) in values {
            let variable = format!("{prefix}{env}");
            let (config, _) = with("", &[(&variable, value)]).unwrap();
            assert_ne!(config, Config::default(), "{variable} has no effect");
        }
    }
}

#[test]
fn the_environment_wins_over_the_file_and_the_new_name_over_the_old() {
    let environment = [("SANDKASTEN_SESSION_TTL_SECONDS", "20"), ("SANDHAUS_SESSION_TTL_SECONDS", "30")];
    let (config, _) = with("session_ttl_seconds: 10", &environment).unwrap();
    assert_eq!(config.session_ttl.as_secs(), 30);
    let (config, _) = with("session_ttl_seconds: 10", &environment[..1]).unwrap();
    assert_eq!(config.session_ttl.as_secs(), 20);
}

#[test]
fn unknown_keys_are_named_with_what_was_meant() {
    let file = "listne: x\ndefaults:\n  cpu_limits: 1\n  enabled: true\n  network_mde: none\nzoo:\n  enabled: true\n\
                seccomp: off\n";
    let (config, warnings) = with(file, &[]).unwrap();
    assert_eq!(
        warnings,
        [
            "test.yaml:1: key listne is not known and has no effect; did you mean listen?",
            "test.yaml:3: key defaults.cpu_limits is not known and has no effect; did you mean defaults.cpu_limit?",
            "test.yaml:4: key defaults.enabled is not known and has no effect; did you mean pool.enabled?",
            "test.yaml:5: key defaults.network_mde is not known and has no effect; did you mean \
             defaults.network_mode?",
            "test.yaml:6: key zoo is not known and has no effect",
            "test.yaml:8: key seccomp is not known and has no effect; did you mean security.seccomp?",
        ]
    );
    assert_eq!(config, Config::default());
}

#[test]
fn variables_that_are_almost_ours_are_named() {
    let environment = [
        ("SANDHAUS_DATADIR", "/x"),
        ("SANDKASTEN_API_KEYS", "x"),
        ("SANDHAUS_PORT_8080_TCP", "tcp://10.0.0.1"),
    ];
    let (config, warnings) = with("", &environment).unwrap();
    assert_eq!(
        warnings,
        [
            "SANDHAUS_DATADIR is no variable of ours; did you mean SANDHAUS_DATA_DIR?",
            "SANDKASTEN_API_KEYS is no variable of ours; did you mean SANDKASTEN_API_KEY?",
        ]
    );
    assert_eq!(config, Config::default());
    let (_, warnings) = with("", &[("SANDHAUS_HOST", "x"), ("SANDKASTEN_LOG", "debug")]).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn keys_of_the_older_tool_that_mean_nothing_here_say_so_once() {
    let file =
        "db_path: /var/lib/sandkasten/sandkasten.db\ndb_max_open_conns: 4\nplayground_config_path: ''\n";
    let (config, warnings) = with(file, &[("SANDKASTEN_DB_PATH", "/x.db")]).unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(warnings.len(), 4);
    assert!(
        warnings[0].starts_with("key db_path in test.yaml:1 has no effect: the store lies in"),
        "{warnings:?}"
    );
    assert!(warnings[3].starts_with("key db_path in the environment (SANDKASTEN_DB_PATH)"), "{warnings:?}");
}

/// A file as the older tool's documents print it, with every key of its table.
#[test]
fn the_older_tools_file_is_taken_as_it_is() {
    let file = "listen: 127.0.0.1:8080\napi_key: sk-x\ndata_dir: /var/lib/sandkasten\ndb_path: /x.db\n\
                default_image: base\nallowed_images: []\ndb_max_open_conns: 0\nsession_ttl_seconds: 1800\n\
                playground_config_path: ''\ndefaults:\n  cpu_limit: 1.0\n  mem_limit_mb: 512\n  pids_limit: 256\n  \
                max_exec_timeout_ms: 120000\n  network_mode: none\n  readonly_rootfs: true\n  exec_mode: ''\n  \
                shell_prefer: ''\npool:\n  enabled: false\n  images: {}\nworkspace:\n  enabled: false\n  \
                persist_by_default: false\nsecurity:\n  seccomp: 'off'\ndashboard:\n  enabled: false\n";
    let (config, warnings) = with(file, &[]).unwrap();
    assert!(warnings.iter().all(|warning| warning.contains("has no effect: ")), "{warnings:?}");
    assert_eq!(warnings.len(), 3);
    assert_eq!(config.seccomp, Seccomp::Off);
    assert_eq!(config.default_image.as_str(), "base");
}

#[test]
fn every_value_has_its_origin() {
    let mut loaded = loaded(
        "session_ttl_seconds: 10\ndefaults:\n  pids_limit: 3\nlisten:\n",
        &[("SANDKASTEN_PIDS_LIMIT", "4")],
    )
    .unwrap();
    loaded.set_by_flag("data_dir", "--data-dir", "/d").unwrap();
    let origin = |name: &str| loaded.origin(find(name).unwrap()).clone();
    assert_eq!(origin("session_ttl_seconds"), Origin::File("test.yaml:1".to_owned()));
    assert_eq!(origin("defaults.pids_limit"), Origin::Environment("SANDKASTEN_PIDS_LIMIT".to_owned()));
    assert_eq!(origin("data_dir"), Origin::Flag("--data-dir"));
    assert_eq!(origin("listen"), Origin::Default);
    let error = loaded.set_by_flag("listen", "--listen", "here").unwrap_err();
    assert_eq!(
        error.to_string(),
        "configuration key listen --listen cannot be \"here\": must be an address and a port such as 127.0.0.1:8080"
    );
}

/// What is shown of a configuration, put into a file, gives the same configuration.
#[test]
fn what_is_shown_reads_back() {
    let file = "listen: '0.0.0.0:9000'\nallowed_images: [python, base]\nsandboxes_max: 7\ndefaults:\n  cpu_limit: 0.25\n  \
                mem_limit_mb: 64\n  disk_limit_mb: 5MB\n  readonly_rootfs: false\n  shell_prefer: sh\n  \
                security_profile: container\n  exec_mode: stateless\n  network_mode: host\n\
                security: {seccomp: mvp}\nnetwork:\n  allow_private: [10.1.0.0/16]\n  resolvers: [10.1.0.1]\n\
                pool:\n  enabled: true\n  images: {python: 3}\nworkspace: {enabled: true, quota_mb: 5}\n";
    let (config, _) = with(file, &[]).unwrap();
    let lines: String = KEYS
        .iter()
        .filter(|key| !key.is_secret() && key.ignored.is_none())
        .map(|key| format!("{}: {}\n", key.name, key.shown(&config)))
        .collect();
    let (again, warnings) = with(&lines, &[]).unwrap();
    assert_eq!(again, config);
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn a_misplaced_file_of_another_user_is_passed_over() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sandhaus.yaml");
    fs_err::write(&path, "").unwrap();
    let trusted = |mode| {
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let mut warnings = Vec::new();
        (is_trusted(&path, &mut warnings), warnings.len())
    };
    assert_eq!(trusted(0o664), (true, 0));
    assert_eq!(trusted(0o666), (false, 1));
}

#[test]
fn the_table_is_whole() {
    let mut names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), KEYS.len());
    let schema = schema();
    for key in KEYS {
        assert!(key.about.ends_with('.'), "{}", key.name);
        let property = match key.name.split_once('.') {
            Some((group, name)) => &schema["properties"][group]["properties"][name],
            None => &schema["properties"][key.name],
        };
        assert!(property["description"].is_string(), "{}", key.name);
        assert!(guide_table().contains(&format!("| `{}` |", key.name)), "{}", key.name);
    }
}

#[test]
fn malformed_values_name_key_value_and_place() {
    let cases = [
        ("session_ttl_seconds: soon", "session_ttl_seconds in test.yaml:1 cannot be soon: must be a whole"),
        ("session_ttl_seconds: -1", "session_ttl_seconds in test.yaml:1 cannot be -1"),
        ("session_ttl_seconds: 0", "session_ttl_seconds in test.yaml:1 cannot be 0"),
        ("listen: here", "listen in test.yaml:1 cannot be here: must be an address"),
        ("defaults:\n  cpu_limit: -1", "defaults.cpu_limit in test.yaml:2 cannot be -1"),
        ("defaults:\n  readonly_rootfs: maybe", "defaults.readonly_rootfs in test.yaml:2 cannot be maybe"),
        ("defaults:\n  security_profile: off", "defaults.security_profile in test.yaml:2 cannot be"),
        ("data_dir: here", "data_dir in test.yaml:1 cannot be here: must be an absolute path"),
        ("allowed_images: 5", "allowed_images in test.yaml:1 cannot be 5"),
        ("- a", "must be a list of `key: value` lines"),
        ("a: [", "is not valid YAML"),
    ];
    for (file, expected) in cases {
        let error = format!("{:#}", with(file, &[]).unwrap_err());
        assert!(error.contains(expected), "{file}: {error}");
    }
    let error = with("", &[("SANDHAUS_PIDS_LIMIT", "many")]).unwrap_err().to_string();
    assert!(
        error.contains("defaults.pids_limit in the environment (SANDHAUS_PIDS_LIMIT) cannot be \"many\"")
    );
}

#[test]
fn the_key_is_never_shown() {
    let (config, _) = with("api_key: hunter2", &[]).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
    let error = with("api_key: [hunter2]", &[]).unwrap_err().to_string();
    assert!(!error.contains("hunter2"), "{error}");
    let error = with("", &[("SANDHAUS_API_KEY", "hunter 2")]).unwrap_err().to_string();
    assert!(!error.contains("hunter"), "{error}");
}

#[test]
fn listening_beyond_loopback_needs_a_key() {
    let exposed = |listen: &str, key: Option<&str>| {
        let config = Config {
            listen: parse_listen(listen).unwrap(),
            api_key: key.map(|key| ApiKey(key.to_owned())),
            ..Config::default()
        };
        check_exposure(&config).is_err()
    };
    for loopback in ["127.0.0.1:80", "127.9.9.9:80", "[::1]:80", "localhost:80"] {
        assert!(!exposed(loopback, None), "{loopback}");
    }
    for open in ["0.0.0.0:80", ":80", "[::]:80", "192.0.2.1:80", "[::ffff:127.0.0.1]:80"] {
        assert!(exposed(open, None), "{open}");
        assert!(!exposed(open, Some("key")), "{open}");
    }
    for bad in ["", "80", "host:80", "127.0.0.1", "127.0.0.1:99999"] {
        assert!(parse_listen(bad).is_err(), "{bad}");
    }
}
