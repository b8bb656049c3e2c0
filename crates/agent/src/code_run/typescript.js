// Runs the TypeScript on descriptor 9 as ts-node without type checks would: as a CommonJS module, with the user's
// arguments from the second place on. Whatever is there translates: esbuild, the compiler, or Node.js itself.
'use strict'
;(() => {
  const childProcess = require('node:child_process')
  const fs = require('node:fs')
  const os = require('node:os')
  const { Module } = require('node:module')
  const path = require('node:path')

  const SOURCE = 9
  const REMEDY =
    'TypeScript needs one of the npm packages esbuild and typescript, or Node.js 22.13 or newer: npm install -g esbuild'

  const code = fs.readFileSync(SOURCE, 'utf8')
  fs.closeSync(SOURCE)
  process.argv.splice(1, 1)
  const folder = process.cwd()
  const name = path.join(folder, '[code].ts')

  const onPath = (program) => {
    for (const place of (process.env.PATH || '').split(path.delimiter)) {
      const file = path.join(place, program)
      try {
        fs.accessSync(file, fs.constants.X_OK)
        return fs.realpathSync(file)
      } catch {
        // Not here.
      }
    }
    return undefined
  }

  // Where packages may be: beside the code, beside Node.js, and where commands of theirs lead.
  const places = () => {
    const commands = ['tsc', 'ts-node', 'typescript-language-server'].map(onPath).filter(Boolean)
    const beside = path.dirname(path.dirname(fs.realpathSync(process.execPath)))
    const shared = [path.join(beside, 'lib'), '/usr/local/lib', '/usr/lib', '/usr/share/nodejs']
    return [folder, ...commands.map((command) => path.dirname(command)), ...shared]
  }

  const load = (name) => {
    for (const place of places()) {
      for (const found of [
        () => require.resolve(name, { paths: [place] }),
        () => require.resolve(path.join(place, name)),
      ]) {
        let file
        try {
          file = found()
        } catch {
          continue
        }
        return require(file)
      }
    }
    return undefined
  }

  const refuse = (text) => {
    process.stderr.write(text.endsWith('\n') ? text : text + '\n')
    process.exit(1)
  }

  const byEsbuild = () => {
    const program = onPath('esbuild')
    if (program === undefined) return undefined
    const wanted = ['--loader=ts', '--format=cjs', '--target=node18', '--sourcemap=inline', '--log-level=error']
    const made = childProcess.spawnSync(program, [...wanted, '--sourcefile=[code].ts'], {
      input: code,
      encoding: 'utf8',
      maxBuffer: 256 << 20,
    })
    if (made.error) return undefined
    if (made.status !== 0) refuse(made.stderr)
    return made.stdout
  }

  const byCompiler = () => {
    const typescript = load('typescript')
    if (typescript === undefined || typescript.transpileModule === undefined) return undefined
    const made = typescript.transpileModule(code, {
      fileName: '[code].ts',
      reportDiagnostics: true,
      compilerOptions: {
        module: typescript.ModuleKind.CommonJS,
        target: typescript.ScriptTarget.ES2022,
        esModuleInterop: true,
        experimentalDecorators: true,
        inlineSourceMap: true,
      },
    })
    if (made.diagnostics.length > 0) {
      const host = { getCanonicalFileName: (file) => file, getCurrentDirectory: () => folder, getNewLine: () => '\n' }
      refuse(typescript.formatDiagnostics(made.diagnostics, host))
    }
    return made.outputText
  }

  const byNode = () => {
    if (!process.allowedNodeEnvironmentFlags.has('--experimental-transform-types')) return undefined
    const flags = ['--experimental-transform-types', '--disable-warning=ExperimentalWarning', '-']
    const run = childProcess.spawnSync(process.execPath, [...flags, ...process.argv.slice(1)], {
      input: 'process.argv.splice(1, 1);' + code,
      stdio: ['pipe', 'inherit', 'inherit'],
    })
    if (run.signal) process.kill(process.pid, run.signal)
    process.exit(run.status ?? 1)
  }

  // A compiler that is a program and no package, as the newest ones are, works on files.
  const byCommand = () => {
    const program = onPath('tsc')
    if (program === undefined) refuse(REMEDY)
    const work = fs.mkdtempSync(path.join(os.tmpdir(), 'code-'))
    let wrong
    try {
      fs.writeFileSync(path.join(work, 'code.ts'), code)
      const wanted = ['--noCheck', '--pretty', 'false', '--module', 'commonjs', '--target', 'es2022', '--inlineSourceMap']
      const made = childProcess.spawnSync(program, [...wanted, 'code.ts'], { cwd: work, encoding: 'utf8' })
      if (made.error || made.status !== 0) wrong = `${made.stdout ?? ''}${made.stderr ?? made.error}`
      else return fs.readFileSync(path.join(work, 'code.js'), 'utf8')
    } finally {
      fs.rmSync(work, { recursive: true, force: true })
    }
    refuse(wrong)
  }

  const script = byEsbuild() ?? byCompiler() ?? byNode() ?? byCommand()
  process.setSourceMapsEnabled(true)
  const main = new Module(name, null)
  main.filename = name
  main.paths = Module._nodeModulePaths(folder)
  process.mainModule = main
  main._compile(script, name)
  main.loaded = true
})()
