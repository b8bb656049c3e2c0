// The toolbox half of the published TypeScript SDK, unmodified. TOOLBOX_URL and TOOLBOX_TOKEN name the toolbox.
// What is asserted is what a call did, as something else than that call sees it.

import assert from 'node:assert/strict'
import { Buffer } from 'node:buffer'
import { createHash, randomUUID } from 'node:crypto'
import { Readable } from 'node:stream'
import test from 'node:test'

import { CodeLanguage, Daytona, DaytonaError, LspLanguageId, Sandbox } from '@daytona/sdk'
import { Configuration } from '@daytona/toolbox-api-client'

const url = process.env.TOOLBOX_URL
const headers = { 'X-Daytona-Source': 'sdk-typescript', 'X-Daytona-SDK-Version': '0.216.0' }
if (process.env.TOOLBOX_TOKEN) headers.Authorization = `Bearer ${process.env.TOOLBOX_TOKEN}`

/** The SDK's object for a sandbox whose control plane is not asked. */
function sandboxOf(language) {
  const [, base, id] = /^(.*)\/([^/]+)$/.exec(url)
  const facts = {
    id, organizationId: 'o', name: id, user: 'daytona', env: {}, labels: { 'code-toolbox-language': language },
    public: false, networkBlockAll: false, target: 'local', cpu: 1, gpu: 0, memory: 1, disk: 1, state: 'started',
    toolboxProxyUrl: base,
  }
  const configuration = new Configuration({ basePath: base, baseOptions: { headers } })
  const subscriptions = { subscribe: () => 'none', unsubscribe: () => {}, refresh: () => true }
  return new Sandbox(
    facts, configuration, Daytona.createAxiosInstance(60_000), {}, async () => undefined, subscriptions, 60_000)
}

const sandbox = sandboxOf(CodeLanguage.TYPESCRIPT)
const { fs, git, process: processes } = sandbox

/** What a command inside prints. */
async function sh(command) {
  const answer = await processes.executeCommand(command)
  assert.equal(answer.exitCode, 0, answer.result)
  return answer.result
}

async function folder() {
  const path = `/tmp/sdk-${randomUUID()}`
  await sh(`mkdir ${path}`)
  return path
}

const digest = (bytes) => createHash('sha256').update(bytes).digest('hex')

test('files go in and out unharmed', async () => {
  const place = await folder()
  const bytes = Buffer.alloc(3 << 20, 'Grüße \n')
  await fs.uploadFile(bytes, `${place}/deep/größe 你.bin`)
  assert.equal((await sh(`sha256sum "${place}/deep/größe 你.bin"`)).split(' ')[0], digest(bytes))
  assert.equal(digest(await fs.downloadFile(`${place}/deep/größe 你.bin`)), digest(bytes))

  await fs.uploadFiles([
    { source: Buffer.from('a'), destination: `${place}/a` },
    { source: Buffer.from('b'), destination: `${place}/b` },
  ])
  assert.equal(await sh(`cat ${place}/a ${place}/b`), 'ab')
  const answers = await fs.downloadFiles([{ source: `${place}/a` }, { source: `${place}/none` }, { source: `${place}/b` }])
  assert.deepEqual(answers.map((answer) => answer.result?.toString()), ['a', undefined, 'b'])
  assert.match(answers[1].error, /not found/i)

  await fs.uploadFileStream(Readable.from([Buffer.from('one '), Buffer.from('two')]), `${place}/streamed`)
  assert.equal(await sh(`cat ${place}/streamed`), 'one two')
  const pieces = []
  for await (const piece of await fs.downloadFileStream(`${place}/streamed`)) pieces.push(piece)
  assert.equal(Buffer.concat(pieces).toString(), 'one two')
})

test('files are looked at and changed', async () => {
  const place = await folder()
  await fs.createFolder(`${place}/made`, '750')
  assert.equal((await sh(`stat -c %a ${place}/made`)).trim(), '750')
  await sh(`printf 'needle\\nhay\\nneedle\\n' >${place}/made/text.txt`)
  const details = await fs.getFileDetails(`${place}/made/text.txt`)
  assert.deepEqual([details.name, details.size, details.isDir], ['text.txt', 18, false])
  assert.deepEqual((await fs.listFiles(`${place}/made`)).map((entry) => entry.name), ['text.txt'])
  assert.deepEqual((await fs.findFiles(place, 'needle')).map((match) => match.line), [1, 3])
  assert.deepEqual((await fs.searchFiles(place, '*.txt')).files, [`${place}/made/text.txt`])
  await fs.replaceInFiles([`${place}/made/text.txt`], 'needle', 'pin')
  assert.equal(await sh(`cat ${place}/made/text.txt`), 'pin\nhay\npin\n')
  await fs.setFilePermissions(`${place}/made/text.txt`, { mode: '600' })
  assert.equal((await sh(`stat -c %a ${place}/made/text.txt`)).trim(), '600')
  await fs.moveFiles(`${place}/made/text.txt`, `${place}/moved`)
  assert.equal(await sh(`ls ${place}`), 'made\nmoved\n')
  await fs.deleteFile(`${place}/moved`)
  await fs.deleteFile(`${place}/made`, true)
  assert.equal(await sh(`ls ${place}`), '')
  await assert.rejects(fs.getFileDetails(`${place}/moved`), DaytonaError)
})

test('commands and code run', async () => {
  const answer = await processes.executeCommand('echo out; echo err >&2; echo $A; pwd; exit 3', '/usr', { A: 'b' })
  assert.deepEqual([answer.exitCode, answer.result], [3, 'out\nerr\nb\n/usr\n'])
  await assert.rejects(processes.executeCommand('sleep 60', undefined, undefined, 1), /timeout/i)
  const typed = await processes.codeRun('const x: number = 2; console.log(x * 21, process.argv.slice(1))', { argv: ['a b'] })
  assert.deepEqual([typed.exitCode, typed.result], [0, "42 [ 'a b' ]\n"])
  const python = await sandboxOf(CodeLanguage.PYTHON).process.codeRun('import os; print(os.environ["A"])', { env: { A: 'b' } })
  assert.equal(python.result, 'b\n')
})

test('a session keeps its state, and its logs are followed', async () => {
  const session = `s-${randomUUID()}`
  await processes.createSession(session)
  try {
    await processes.executeSessionCommand(session, { command: 'cd /usr; V=kept' })
    const looked = await processes.executeSessionCommand(session, { command: 'pwd; echo $V; echo bad >&2' })
    assert.deepEqual([looked.exitCode, looked.stdout, looked.stderr], [0, '/usr\nkept\n', 'bad\n'])
    const asked = await processes.executeSessionCommand(
      session, { command: 'read line; echo "got $line"; echo e >&2', runAsync: true })
    const [stdout, stderr] = [[], []]
    const following = processes.getSessionCommandLogs(
      session, asked.cmdId, (piece) => stdout.push(piece), (piece) => stderr.push(piece))
    await processes.sendSessionCommandInput(session, asked.cmdId, 'this')
    await following
    assert.match(stdout.join(''), /got this\n$/)
    assert.equal(stderr.join(''), 'e\n')
    assert.equal((await processes.getSessionCommand(session, asked.cmdId)).exitCode, 0)
    assert.ok((await processes.listSessions()).some((one) => one.sessionId === session))
  } finally {
    await processes.deleteSession(session)
  }
})

test('a terminal is typed into, resized and left', async () => {
  const id = `pty-${randomUUID()}`
  let seen = ''
  const decoder = new TextDecoder()
  let noticed = () => {}
  const until = async (pattern) => {
    while (!pattern.test(seen)) await new Promise((resolve) => (noticed = resolve))
  }
  const pty = await processes.createPty({
    id, cols: 100, rows: 30, envs: { MARK: 'blue' },
    onData: (bytes) => {
      seen += decoder.decode(bytes, { stream: true })
      noticed()
    },
  })
  await pty.waitForConnection()
  await pty.sendInput('stty size; echo "mark=$MARK"\n')
  await until(/30 100[\s\S]*mark=blue/)
  await pty.resize(120, 40)
  await pty.sendInput('stty size\n')
  await until(/40 120/)
  assert.ok((await processes.listPtySessions()).some((one) => one.id === id))
  await pty.sendInput('exit 7\n')
  assert.equal((await pty.wait()).exitCode, 7)
  await pty.disconnect()
})

test('an interpreter keeps what it was told', async () => {
  const interpreter = sandbox.codeInterpreter
  const context = await interpreter.createContext()
  const output = []
  await interpreter.runCode('x = 20', { context })
  const answer = await interpreter.runCode('import sys\nprint(x + 1)\nprint("e", file=sys.stderr)', {
    context, onStdout: (message) => output.push(message.output),
  })
  assert.deepEqual([answer.stdout, answer.stderr, output.join('')], ['21\n', 'e\n', '21\n'])
  const failed = await interpreter.runCode('x / 0', { context })
  assert.equal(failed.error.name, 'ZeroDivisionError')
  await interpreter.deleteContext(context)
  assert.ok(!(await interpreter.listContexts()).some((one) => one.id === context.id))
})

test('a repository is made, changed and told of', async () => {
  const place = await folder()
  await git.init(place, false, 'main')
  await fs.uploadFile(Buffer.from('one\n'), `${place}/file.txt`)
  assert.equal((await git.status(place)).fileStatus[0].staging, 'Untracked')
  await git.add(place, ['.'])
  const commit = await git.commit(place, 'first', 'A Person', 'a@example.org')
  assert.equal((await sh(`git -C ${place} log -1 --format='%H %an <%ae> %s'`)).trim(),
    `${commit.sha} A Person <a@example.org> first`)
  await git.createBranch(place, 'side')
  assert.deepEqual((await git.branches(place)).branches.sort(), ['main', 'side'])
  await git.checkoutBranch(place, 'main')
  assert.equal((await git.status(place)).currentBranch, 'main')
  await git.remoteAdd(place, 'origin', 'https://user:secret@example.org/x.git')
  assert.equal((await git.remotes(place)).remotes[0].url, 'https://user@example.org/x.git')
})

test('a language server completes', { skip: process.env.TOOLBOX_LSP === 'off' }, async () => {
  const place = await folder()
  await sh(`printf 'interface Point { across: number }\\nconst p: Point = { across: 1 }\\np.\\n' >${place}/a.ts`)
  const server = await sandbox.createLspServer(LspLanguageId.TYPESCRIPT, place)
  await server.start()
  try {
    await server.didOpen(`${place}/a.ts`)
    const symbols = await server.documentSymbols(`${place}/a.ts`)
    assert.ok(symbols.some((symbol) => symbol.name === 'Point'))
    const found = await server.completions(`${place}/a.ts`, { line: 2, character: 2 })
    assert.ok(found.items.some((item) => item.label === 'across'))
  } finally {
    await server.stop()
  }
})

test('folders of the sandbox are told', async () => {
  assert.equal(await sandbox.getUserHomeDir(), (await sh('echo $HOME')).trim())
  assert.equal(await sandbox.getWorkDir(), (await sh('pwd')).trim())
})
