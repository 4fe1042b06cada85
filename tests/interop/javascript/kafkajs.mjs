// KafkaJS fitted to the interop tests. It leaves all codecs but gzip to others; these are the ones used here.
import { randomUUID } from 'node:crypto'
import { lz4Compress, lz4Decompress } from '@platformatic/wasm-utils'
import zstd from '@mongodb-js/zstd'
import kafkajs from 'kafkajs'
import snappy from 'kafkajs-snappy'
import { DEADLINE_MS, Log, base64, bytes, serve, sleep, versionOf } from './serve.mjs'

const { CompressionCodecs, CompressionTypes, ConfigResourceTypes, Kafka, Partitioners, logLevel } = kafkajs

CompressionCodecs[CompressionTypes.Snappy] = snappy
CompressionCodecs[CompressionTypes.LZ4] = () => ({
  compress: async encoder => lz4Compress(encoder.buffer),
  decompress: async buffer => lz4Decompress(buffer),
})
CompressionCodecs[CompressionTypes.ZSTD] = () => ({
  compress: async encoder => zstd.compress(encoder.buffer),
  decompress: async buffer => zstd.decompress(buffer),
})

const CODECS = {
  none: CompressionTypes.None,
  gzip: CompressionTypes.GZIP,
  snappy: CompressionTypes.Snappy,
  lz4: CompressionTypes.LZ4,
  zstd: CompressionTypes.ZSTD,
}

const kafka = request => new Kafka({ brokers: [request.bootstrap], clientId: 'kafkajs', logLevel: logLevel.NOTHING })

async function produce(request) {
  const producer = kafka(request).producer({
    createPartitioner: Partitioners.DefaultPartitioner,
    idempotent: request.idempotent,
    ...(request.idempotent ? { maxInFlightRequests: 1 } : {}),
    retry: { retries: request.idempotent ? 1000 : 5, maxRetryTime: 1000 },
  })
  await producer.connect()
  try {
    const messages = request.records.map(record => ({
      key: bytes(record.key),
      value: bytes(record.value),
      headers: Object.fromEntries(record.headers.map(({ name, value }) => [name, bytes(value)])),
      partition: request.partition,
      ...(record.timestamp_ms === null ? {} : { timestamp: String(record.timestamp_ms) }),
    }))
    for (const batch of batches(messages, request.pause_ms)) {
      await producer.send({
        topic: request.topic,
        acks: request.acks,
        compression: CODECS[request.compression],
        messages: batch,
      })
      await sleep(request.pause_ms)
    }
  } finally {
    await producer.disconnect()
  }
}

/** KafkaJS sends what it is given as one batch: one of at most about half a megabyte, or each message alone. */
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

/** KafkaJS reads only as a member of a group: here one of its own. */
async function consume(request) {
  const consumer = kafka(request).consumer({ groupId: `read-${randomUUID()}` })
  const found = []
  await consumer.connect()
  try {
    await consumer.subscribe({ topic: request.topic, fromBeginning: true })
    await new Promise((resolve, reject) => {
      const deadline = setTimeout(resolve, DEADLINE_MS)
      const done = () => {
        clearTimeout(deadline)
        resolve()
      }
      consumer.on(consumer.events.CRASH, event => reject(event.payload.error))
      consumer
        .run({
          autoCommit: false,
          eachMessage: async ({ partition, message }) => {
            const offset = Number(message.offset)
            if (partition !== request.partition || offset < request.offset) return
            if (found.length < request.count) found.push(consumed(partition, message))
            if (found.length === request.count) done()
          },
        })
        .catch(reject)
      consumer.seek({ topic: request.topic, partition: request.partition, offset: String(request.offset) })
    })
  } finally {
    await consumer.disconnect()
  }
  return found
}

function consumed(partition, message) {
  return {
    key: base64(message.key),
    value: base64(message.value),
    headers: Object.entries(message.headers ?? {}).map(([name, value]) => ({ name, value: base64(value) })),
    timestamp_ms: Number(message.timestamp),
    partition,
    offset: Number(message.offset),
  }
}

async function administer(request, ask) {
  const admin = kafka(request).admin({ retry: { retries: 5 } })
  await admin.connect()
  try {
    return await ask(admin)
  } finally {
    await admin.disconnect()
  }
}

const offset_for_timestamp = request =>
  administer(request, async admin => {
    const found = await admin.fetchTopicOffsetsByTimestamp(request.topic, request.timestamp_ms)
    const offset = Number(found.find(({ partition }) => partition === request.partition).offset)
    return offset < 0 ? null : offset // where there is none, it asks again, for the end
  })

const create_topic = request =>
  administer(request, async admin => {
    const created = await admin.createTopics({
      topics: [
        {
          topic: request.topic,
          numPartitions: request.partitions,
          replicationFactor: 1,
          configEntries: Object.entries(request.configs).map(([name, value]) => ({ name, value })),
        },
      ],
    })
    if (!created) throw new Error(`topic ${request.topic} already exists`) // KafkaJS says false
  })

const delete_topic = request => administer(request, admin => admin.deleteTopics({ topics: [request.topic] }))

const partitions = request =>
  administer(request, async admin => {
    if (!(await admin.listTopics()).includes(request.topic)) return null
    const { topics } = await admin.fetchTopicMetadata({ topics: [request.topic] })
    return topics[0].partitions.map(({ partitionId }) => partitionId)
  })

const committed = request =>
  administer(request, async admin => {
    const [found] = await admin.fetchOffsets({ groupId: request.group, topics: [request.topic] })
    return Object.fromEntries(found.partitions.map(({ partition, offset }) => [partition, Number(offset)]))
  })

const create_partitions = request =>
  administer(request, admin =>
    admin.createPartitions({ topicPartitions: [{ topic: request.topic, count: request.partitions }] }),
  ).then(() => null)

const topicResource = request => ({ type: ConfigResourceTypes.TOPIC, name: request.topic })

const config = request =>
  administer(request, async admin => {
    const { resources } = await admin.describeConfigs({ resources: [topicResource(request)], includeSynonyms: false })
    return resources[0].configEntries.find(({ configName }) => configName === request.name)?.configValue
  })

/** KafkaJS has only AlterConfigs, which sets everything that is not named back to its default. */
const set_config = request =>
  administer(request, admin =>
    admin.alterConfigs({
      validateOnly: false,
      resources: [{ ...topicResource(request), configEntries: [{ name: request.name, value: request.value }] }],
    }),
  ).then(() => null)

const delete_records = request =>
  administer(request, async admin => {
    await admin.fetchTopicOffsets(request.topic) // else KafkaJS knows no leader of the partition
    await admin.deleteTopicRecords({
      topic: request.topic,
      partitions: [{ partition: request.partition, offset: String(request.offset) }],
    })
  })

const groups = request =>
  administer(request, async admin => (await admin.listGroups()).groups.map(({ groupId }) => groupId))

const delete_group = request => administer(request, admin => admin.deleteGroups([request.group])).then(() => null)

async function join(request) {
  const log = new Log(request.limit)
  let assigned = []
  const consumer = kafka(request).consumer({
    groupId: request.group,
    sessionTimeout: 6000,
    heartbeatInterval: 300,
    maxWaitTimeInMs: 200,
  })
  consumer.on(consumer.events.GROUP_JOIN, ({ payload }) => {
    assigned = payload.memberAssignment[request.topic] ?? []
  })
  consumer.on(consumer.events.REBALANCING, () => {
    assigned = []
  })
  consumer.on(consumer.events.CRASH, ({ payload }) => {
    if (!payload.restart) log.fail(payload.error)
  })
  await consumer.connect()
  await consumer.subscribe({ topic: request.topic, fromBeginning: true })
  await consumer.run({
    autoCommit: false,
    eachBatchAutoResolve: false,
    eachBatch: async ({ batch, resolveOffset, heartbeat }) => {
      let last
      for (const message of batch.messages) {
        if (log.full) {
          consumer.pause([{ topic: request.topic }])
          break
        }
        log.add(consumed(batch.partition, message))
        last = message.offset
      }
      if (last === undefined) return
      resolveOffset(last)
      const next = String(BigInt(last) + 1n)
      await consumer.commitOffsets([{ topic: request.topic, partition: batch.partition, offset: next }])
      await heartbeat()
    },
  })
  return {
    progress: () => log.progress(assigned),
    leave: () => consumer.disconnect(),
  }
}

await serve({
  version: () => versionOf('kafkajs'),
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
