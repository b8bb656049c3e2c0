# Runs the code on standard input as `python3 -` would, and shows at its end the figures that it has not shown.


def _run():
    import types

    own = sys.argv[0]
    own_descriptor = int(own.rsplit("/", 1)[1])
    os.close(own_descriptor)
    charts_descriptor = own_descriptor - 1
    os.set_inheritable(charts_descriptor, False)
    charts = watch_for_figures(charts_descriptor)
    text = sys.stdin.buffer.read()
    sys.argv[0], sys.path[0] = "-", ""
    module = types.ModuleType("__main__")
    module.__builtins__ = __builtins__
    sys.modules["__main__"] = module
    status = 0
    try:
        exec(compile(text, "<stdin>", "exec"), module.__dict__)
    except SystemExit:
        charts.show_all()
        raise
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == own:
            trace = trace.tb_next
        error.__traceback__ = trace
        sys.excepthook(type(error), error, trace)
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    charts.show_all()
    sys.exit(status)


_run()
