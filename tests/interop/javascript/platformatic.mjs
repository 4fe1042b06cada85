// @platformatic/kafka fitted to the interop tests.
import { randomUUID } from 'node:crypto'
import zlib from 'node:zlib'
import { Admin, ConfigResourceTypes, Consumer, IncrementalAlterConfigOperationTypes, Producer } from '@platformatic/kafka'
import { DEADLINE_MS, Log, base64, bytes, serve, sleep, versionOf } from './serve.mjs'

const options = request => ({
  clientId: 'platformatic',
  bootstrapBrokers: [request.bootstrap],
  autocreateTopics: true,
})

async function produce(request) {
  const producer = new Producer({
    ...options(request),
    idempotent: request.idempotent,
    retries: request.idempotent ? 100 : 3,
    retryDelay: 200,
  })
  try {
    const messages = request.records.map(record => ({
      topic: request.topic,
      partition: request.partition,
      key: bytes(record.key) ?? undefined,
      value: bytes(record.value) ?? undefined,
      headers: new Map(record.headers.map(({ name, value }) => [Buffer.from(name), bytes(value)])),
      ...(record.timestamp_ms === null ? {} : { timestamp: BigInt(record.timestamp_ms) }),
    }))
    for (const batch of batches(messages, request.pause_ms)) {
      await producer.send({ acks: request.acks, compression: request.compression, messages: batch })
      await sleep(request.pause_ms)
    }
  } finally {
    await producer.close()
  }
}

/** It sends what it is given as one batch: one of at most about half a megabyte, or each message alone. */
function* batches(messages, pauseMs) {
  let batch = []
  let sizeBytes = 0
  for (const message of messages) {
    const messageBytes = message.value?.length ?? 0
    if (batch.length && (pauseMs || sizeBytes + messageBytes > 500_000)) {
      yield batch
      batch = []
      sizeBytes = 0
    }
    batch.push(message)
    sizeBytes += messageBytes
  }
  if (batch.length) yield batch
}

/** It reads only as a member of a group: here one of its own. */
async function consume(request) {
  const consumer = new Consumer({ ...options(request), groupId: `read-${randomUUID()}`, maxWaitTime: 200 })
  const found = []
  const deadline = setTimeout(() => consumer.close(true), DEADLINE_MS)
  try {
    const { topic, partition, offset } = request
    const stream = await consumer.consume({
      topics: [topic],
      mode: 'manual',
      offsets: await others(request, { topic, partition, offset: BigInt(offset) }),
      autocommit: false,
    })
    for await (const message of stream) {
      if (message.partition === partition) found.push(consumed(message))
      if (found.length >= request.count) break
    }
  } finally {
    clearTimeout(deadline)
    await consumer.close(true)
  }
  return found
}

/** Where to begin: in one partition as asked, in the others, which come with the topic, anywhere. */
async function others(request, asked) {
  return (await partitions(request)).map(partition =>
    partition === asked.partition ? asked : { ...asked, partition, offset: 0n },
  )
}

function consumed(message) {
  return {
    key: base64(message.key),
    value: base64(message.value),
    headers: [...message.headers].map(([name, value]) => ({ name: name.toString(), value: base64(value) })),
    timestamp_ms: Number(message.timestamp),
    partition: message.partition,
    offset: Number(message.offset),
  }
}

async function administer(request, ask) {
  const admin = new Admin({ ...options(request), autocreateTopics: false })
  try {
    return await ask(admin)
  } finally {
    await admin.close()
  }
}

const offset_for_timestamp = request =>
  administer(request, async admin => {
    const [found] = await admin.listOffsets({
      topics: [
        {
          name: request.topic,
          partitions: [{ partitionIndex: request.partition, timestamp: BigInt(request.timestamp_ms) }],
        },
      ],
    })
    const offset = Number(found.partitions[0].offset)
    return offset < 0 ? null : offset
  })

const create_topic = request =>
  administer(request, admin =>
    admin.createTopics({
      topics: [request.topic],
      partitions: request.partitions,
      replicas: 1,
      configs: Object.entries(request.configs).map(([name, value]) => ({ name, value })),
    }),
  ).then(() => null)

const delete_topic = request => administer(request, admin => admin.deleteTopics({ topics: [request.topic] }))

const partitions = request =>
  administer(request, async admin => {
    if (!(await admin.listTopics()).includes(request.topic)) return null
    const { topics } = await admin.metadata({ topics: [request.topic] })
    return topics.get(request.topic).partitions.map((_, index) => index)
  })

const committed = request =>
  administer(request, async admin => {
    const [group] = await admin.listConsumerGroupOffsets({ groups: [request.group] })
    const found = group.topics.find(({ name }) => name === request.topic)?.partitions ?? []
    return Object.fromEntries(found.map(({ partitionIndex, committedOffset }) => [partitionIndex, Number(committedOffset)]))
  })

const create_partitions = request =>
  administer(request, admin =>
    admin.createPartitions({ topics: [{ name: request.topic, count: request.partitions, assignments: null }] }),
  )

const topicResource = request => ({ resourceType: ConfigResourceTypes.TOPIC, resourceName: request.topic })

const config = request =>
  administer(request, async admin => {
    const [found] = await admin.describeConfigs({
      resources: [{ ...topicResource(request), configurationKeys: [request.name] }],
    })
    return found.configs.find(({ name }) => name === request.name)?.value
  })

const set_config = request =>
  administer(request, admin =>
    admin.incrementalAlterConfigs({
      resources: [
        {
          ...topicResource(request),
          configs: [
            { name: request.name, value: request.value, configOperation: IncrementalAlterConfigOperationTypes.SET },
          ],
        },
      ],
    }),
  )

const delete_records = request =>
  administer(request, admin =>
    admin.deleteRecords({
      topics: [
        { name: request.topic, partitions: [{ partition: request.partition, offset: BigInt(request.offset) }] },
      ],
    }),
  ).then(() => null)

const groups = request => administer(request, async admin => [...(await admin.listGroups()).keys()])

const delete_group = request => administer(request, admin => admin.deleteGroups({ groups: [request.group] }))

async function join(request) {
  const log = new Log(request.limit)
  const consumer = new Consumer({
    ...options(request),
    groupId: request.group,
    ...(request.assignor === 'consumer' ? { groupProtocol: 'consumer' } : { sessionTimeout: 6000, heartbeatInterval: 300 }),
    ...(request.instance_id ? { groupInstanceId: request.instance_id } : {}),
    maxWaitTime: 200,
  })
  const stream = await consumer.consume({
    topics: [request.topic],
    mode: 'committed',
    fallbackMode: 'earliest',
    autocommit: false,
  })
  let leaving = false
  const reading = (async () => {
    for await (const message of stream) {
      if (log.full || leaving) break
      log.add(consumed(message))
      await message.commit()
    }
  })().catch(error => {
    if (!leaving) log.fail(error)
  })
  return {
    progress: () =>
      log.progress(consumer.assignments?.find(({ topic }) => topic === request.topic)?.partitions ?? []),
    async leave() {
      leaving = true
      await consumer.close(true)
      await reading
    },
  }
}

await serve({
  version: () => versionOf('@platformatic/kafka'),
  codecs: () => ['none', 'gzip', 'snappy', 'lz4', ...(zlib.zstdCompressSync ? ['zstd'] : [])],
  produce,
  consume,
  offset_for_timestamp,
  create_topic,
  delete_topic,
  partitions,
  committed,
  create_partitions,
  config,
  set_config,
  delete_records,
  groups,
  delete_group,
  join,
})
