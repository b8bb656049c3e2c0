# An interpreter that keeps its state: takes pieces of code on one descriptor, says on another how each ended. Its
# standard streams are the code's own. Preceded by the text that turns figures into charts, in one file.


def _serve():
    import linecache
    import signal
    import traceback
    import types

    own = sys.argv[0]
    own_descriptor = int(own.rsplit("/", 1)[1])
    os.close(own_descriptor)
    orders, events = own_descriptor - 1, own_descriptor - 2
    for descriptor in (orders, events):
        os.set_inheritable(descriptor, False)
    me = os.getpid()
    orders = os.fdopen(orders, "rb")
    text_max, trace_max, cells_kept = 16 << 10, 128 << 10, 100

    sys.argv, sys.path[0] = [""], ""
    module = types.ModuleType("__main__")
    module.__builtins__ = __builtins__
    sys.modules["__main__"] = module
    charts = watch_for_figures(events)
    send_chart = charts.send
    running = False

    def interrupt(number, frame):
        # One that comes too late is for nobody.
        if running:
            raise KeyboardInterrupt

    def send(event):
        rest = memoryview(json.dumps(event).encode() + b"\n")
        while rest:
            rest = rest[os.write(events, rest) :]

    def describe(error):
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == own:
            trace = trace.tb_next
        error.__traceback__ = trace
        try:
            value = str(error)
        except Exception:
            value = "<no text>"
        try:
            lines = "".join(traceback.format_exception(type(error), error, trace))
        except Exception:
            lines = ""
        name = type(error).__name__
        return {"name": name, "value": value[:text_max], "traceback": lines[-trace_max:]}

    def run(name, order):
        nonlocal running
        code = order["code"]
        # A traceback shows lines of code that is in no file.
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        old = {key: os.environ.get(key) for key in order["envs"]}
        os.environ.update(order["envs"])
        charts.sent = 0
        charts.send = send_chart if order["charts"] else lambda text: None
        try:
            try:
                running = True
                exec(compile(code, name, "exec"), module.__dict__)
                charts.show_all()
            finally:
                running = False
            return None
        except SystemExit as error:
            if error.code in (None, 0):
                return None
            return describe(error)
        except BaseException as error:
            return describe(error)
        finally:
            if os.getpid() != me:
                # A copy of this process that came back from the code: its end is nobody's affair.
                os._exit(0)
            for key, value in old.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value

    def flush():
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                pass  # Closed by the code.

    signal.signal(signal.SIGINT, interrupt)
    number = 0
    while True:
        length = orders.readline()
        if not length:
            return
        order = json.loads(orders.read(int(length)))
        number += 1
        error = run(f"<cell {number}>", order)
        linecache.cache.pop(f"<cell {number - cells_kept}>", None)
        flush()
        send({"ended": order["id"], "error": error})


_serve()
