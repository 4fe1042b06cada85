// The line protocol of the interop tests (../README.md) for a JavaScript client.
//
// Always true: one line in, one line out, in order; a client's error travels as text and never ends the process.
import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'

export { sleep }

export const DEADLINE_MS = 30_000

/** The version of an installed module. */
export function versionOf(module) {
  return JSON.parse(readFileSync(new URL(`node_modules/${module}/package.json`, import.meta.url))).version
}

export const bytes = base64 => (base64 === null ? null : Buffer.from(base64, 'base64'))
export const base64 = buffer => (buffer === null || buffer === undefined ? null : Buffer.from(buffer).toString('base64'))

/** What a group member has gathered. */
export class Log {
  records = []
  failure = ''
  #read = 0

  constructor(limit) {
    this.limit = limit
  }

  get full() {
    return this.limit > 0 && this.#read >= this.limit
  }

  add(record) {
    this.records.push(record)
    this.#read++
  }

  fail(error) {
    this.failure ||= describe(error)
  }

  progress(assigned) {
    const records = this.records
    this.records = []
    return { assigned, records, failure: this.failure }
  }
}

/** An error with everything that it was caused by: JavaScript clients wrap what the broker said. */
function describe(error) {
  const causes = [error?.cause, ...(error?.errors ?? [])].filter(Boolean)
  const own = error?.type ? `${error} (${error.type})` : String(error?.stack ?? error).split('\n')[0]
  const id = error?.apiId ? ` ${error.apiId}` : ''
  return [own + id, ...causes.map(describe)].join(': ')
}

/** Answer calls until the input ends. `client` has one method for each; `join` returns { progress(), leave() }. */
export async function serve(client) {
  const members = []
  const calls = {
    ...client,
    async join(request) {
      members.push(await client.join(request))
      return members.length
    },
    progress: request => members[request.member - 1].progress(),
    leave: request => members[request.member - 1].leave(),
  }
  for await (const line of createInterface({ input: process.stdin })) {
    const request = JSON.parse(line)
    let answer
    try {
      const call = calls[request.call]
      if (!call) throw new Error(`unknown call ${request.call}`)
      answer = { result: (await call(request)) ?? null }
    } catch (error) {
      answer = { error: describe(error) }
    }
    process.stdout.write(JSON.stringify(answer) + '\n')
  }
  process.exit(0) // members that a failed test left behind have timers
}
