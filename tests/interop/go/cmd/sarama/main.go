// sarama fitted to the interop tests.
package main

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/IBM/sarama"

	"tidelog/tests/interop/driver"
)

type ibm struct{}

func main() {
	driver.Serve(ibm{}, driver.Version("github.com/IBM/sarama"))
}

var codecs = map[string]sarama.CompressionCodec{
	"none":   sarama.CompressionNone,
	"gzip":   sarama.CompressionGZIP,
	"snappy": sarama.CompressionSnappy,
	"lz4":    sarama.CompressionLZ4,
	"zstd":   sarama.CompressionZSTD,
}

func config() *sarama.Config {
	config := sarama.NewConfig()
	config.Version = sarama.MaxVersion
	return config
}

func (ibm) Produce(request driver.Request) error {
	config := config()
	config.Producer.Compression = codecs[request.Compression]
	config.Producer.RequiredAcks = sarama.RequiredAcks(request.Acks)
	config.Producer.Partitioner = sarama.NewManualPartitioner
	config.Producer.Return.Successes = true
	config.Producer.Retry.Max = 100
	config.Metadata.Retry.Max = 100
	config.Producer.Idempotent = request.Idempotent
	config.Net.MaxOpenRequests = 1 // what sarama asks for where order counts
	producer, err := sarama.NewAsyncProducer([]string{request.Bootstrap}, config)
	if err != nil {
		return err
	}
	go func() {
		for _, record := range request.Records {
			producer.Input() <- message(request, record)
			time.Sleep(time.Duration(request.PauseMs) * time.Millisecond)
		}
	}()
	var problem error
	for range request.Records { // closing earlier would fail what is being tried again
		select {
		case <-producer.Successes():
		case failure := <-producer.Errors():
			problem = errors.Join(problem, failure.Err)
		}
	}
	return errors.Join(problem, producer.Close())
}

func message(request driver.Request, record driver.Record) *sarama.ProducerMessage {
	sent := &sarama.ProducerMessage{Topic: request.Topic, Partition: request.Partition}
	if record.Key != nil {
		sent.Key = sarama.ByteEncoder(record.Key)
	}
	if record.Value != nil {
		sent.Value = sarama.ByteEncoder(record.Value)
	}
	for _, header := range record.Headers {
		sent.Headers = append(sent.Headers, sarama.RecordHeader{Key: []byte(header.Name), Value: header.Value})
	}
	if record.TimestampMs != nil {
		sent.Timestamp = time.UnixMilli(*record.TimestampMs)
	}
	return sent
}

func (ibm) Consume(request driver.Request) ([]driver.Record, error) {
	consumer, err := sarama.NewConsumer([]string{request.Bootstrap}, config())
	if err != nil {
		return nil, err
	}
	defer consumer.Close()
	partition, err := consumer.ConsumePartition(request.Topic, request.Partition, request.Offset)
	if err != nil {
		return nil, err
	}
	defer partition.Close()
	deadline := time.After(driver.Deadline)
	found := []driver.Record{}
	for len(found) < request.Count {
		select {
		case message := <-partition.Messages():
			found = append(found, consumed(message))
		case <-deadline:
			return found, nil
		}
	}
	return found, nil
}

func consumed(message *sarama.ConsumerMessage) driver.Record {
	timestamp := message.Timestamp.UnixMilli()
	found := driver.Record{
		Key: message.Key, Value: message.Value, TimestampMs: &timestamp,
		Partition: message.Partition, Offset: message.Offset,
	}
	for _, header := range message.Headers {
		found.Headers = append(found.Headers, driver.Header{Name: string(header.Key), Value: header.Value})
	}
	return found
}

func (ibm) OffsetForTimestamp(request driver.Request) (*int64, error) {
	client, err := sarama.NewClient([]string{request.Bootstrap}, config())
	if err != nil {
		return nil, err
	}
	defer client.Close()
	offset, err := client.GetOffset(request.Topic, request.Partition, request.TimestampMs)
	if err != nil || offset < 0 {
		return nil, err
	}
	return &offset, nil
}

func (ibm) CreateTopic(request driver.Request) error {
	return administer(request, func(admin sarama.ClusterAdmin) error {
		detail := sarama.TopicDetail{
			NumPartitions: request.Partitions, ReplicationFactor: 1, ConfigEntries: map[string]*string{},
		}
		for name, value := range request.Configs {
			detail.ConfigEntries[name] = &value
		}
		return admin.CreateTopic(request.Topic, &detail, false)
	})
}

func (ibm) DeleteTopic(request driver.Request) error {
	return administer(request, func(admin sarama.ClusterAdmin) error {
		return admin.DeleteTopic(request.Topic)
	})
}

func (ibm) Partitions(request driver.Request) ([]int32, error) {
	var found []int32
	err := administer(request, func(admin sarama.ClusterAdmin) error {
		topics, err := admin.DescribeTopics([]string{request.Topic})
		if err != nil {
			return err
		}
		if errors.Is(topics[0].Err, sarama.ErrUnknownTopicOrPartition) {
			return nil
		}
		for _, partition := range topics[0].Partitions {
			found = append(found, partition.ID)
		}
		if topics[0].Err != sarama.ErrNoError {
			return topics[0].Err
		}
		return nil
	})
	return found, err
}

func (ibm) Committed(request driver.Request) (map[int32]int64, error) {
	found := map[int32]int64{}
	err := administer(request, func(admin sarama.ClusterAdmin) error {
		answer, err := admin.ListConsumerGroupOffsets(request.Group, nil)
		if err != nil {
			return err
		}
		for partition, block := range answer.Blocks[request.Topic] {
			found[partition] = block.Offset
		}
		return nil
	})
	return found, err
}

func (ibm) CreatePartitions(request driver.Request) error {
	return administer(request, func(admin sarama.ClusterAdmin) error {
		return admin.CreatePartitions(request.Topic, request.Partitions, nil, false)
	})
}

func (ibm) Config(request driver.Request) (*string, error) {
	var found *string
	err := administer(request, func(admin sarama.ClusterAdmin) error {
		entries, err := admin.DescribeConfig(sarama.ConfigResource{Type: sarama.TopicResource, Name: request.Topic})
		for _, entry := range entries {
			if entry.Name == request.Name {
				found = &entry.Value
			}
		}
		return err
	})
	return found, err
}

func (ibm) SetConfig(request driver.Request) error {
	return administer(request, func(admin sarama.ClusterAdmin) error {
		change := sarama.IncrementalAlterConfigsEntry{
			Operation: sarama.IncrementalAlterConfigsOperationSet, Value: &request.Value,
		}
		changes := map[string]sarama.IncrementalAlterConfigsEntry{request.Name: change}
		return admin.IncrementalAlterConfig(sarama.TopicResource, request.Topic, changes, false)
	})
}

func (ibm) DeleteRecords(request driver.Request) error {
	return administer(request, func(admin sarama.ClusterAdmin) error {
		return admin.DeleteRecords(request.Topic, map[int32]int64{request.Partition: request.Offset})
	})
}

func (ibm) Groups(request driver.Request) ([]string, error) {
	found := []string{}
	err := administer(request, func(admin sarama.ClusterAdmin) error {
		groups, err := admin.ListConsumerGroups()
		for group := range groups {
			found = append(found, group)
		}
		return err
	})
	return found, err
}

func (ibm) DeleteGroup(request driver.Request) error {
	return administer(request, func(admin sarama.ClusterAdmin) error {
		return admin.DeleteConsumerGroup(request.Group)
	})
}

func administer(request driver.Request, ask func(sarama.ClusterAdmin) error) error {
	admin, err := sarama.NewClusterAdmin([]string{request.Bootstrap}, config())
	if err != nil {
		return err
	}
	defer admin.Close()
	return ask(admin)
}

type member struct {
	driver.Log
	group sarama.ConsumerGroup
	limit int
	stop  context.CancelFunc
	done  chan struct{}
}

var strategies = map[string]sarama.BalanceStrategy{
	"range":      sarama.NewBalanceStrategyRange(),
	"roundrobin": sarama.NewBalanceStrategyRoundRobin(),
	"sticky":     sarama.NewBalanceStrategySticky(),
}

func (ibm) Join(request driver.Request) (driver.Member, error) {
	config := config()
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.Consumer.Offsets.AutoCommit.Enable = false
	config.Consumer.Group.Heartbeat.Interval = 300 * time.Millisecond
	config.Consumer.Group.Rebalance.Retry.Backoff = 200 * time.Millisecond
	config.Consumer.Retry.Backoff = 200 * time.Millisecond
	config.Consumer.MaxWaitTime = 200 * time.Millisecond // leaving waits for a fetch
	config.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{strategies[request.Assignor]}
	config.Consumer.Group.InstanceId = request.InstanceID
	config.Consumer.Return.Errors = true
	group, err := sarama.NewConsumerGroup([]string{request.Bootstrap}, request.Group, config)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	joined := &member{group: group, limit: request.Limit, stop: stop, done: make(chan struct{})}
	go func() {
		for err := range group.Errors() {
			if !rejoins(err) {
				joined.Fail(err)
			}
		}
	}()
	go func() {
		defer close(joined.done)
		for ctx.Err() == nil {
			if err := group.Consume(ctx, []string{request.Topic}, joined); err != nil && !rejoins(err) {
				joined.Fail(err)
				return
			}
		}
	}()
	return joined, nil
}

// rejoins tells whether an error is how sarama says that it joins again: that is what a rebalance looks like.
func rejoins(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, sarama.ErrRebalanceInProgress) ||
		errors.Is(err, sarama.ErrIllegalGeneration) || strings.Contains(err.Error(), "context canceled")
}

func (member *member) Setup(session sarama.ConsumerGroupSession) error {
	for _, partitions := range session.Claims() {
		member.Assign(partitions...)
	}
	return nil
}

func (member *member) Cleanup(session sarama.ConsumerGroupSession) error {
	for _, partitions := range session.Claims() {
		member.Revoke(partitions...)
	}
	return nil
}

func (member *member) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for {
		select {
		case message, open := <-claim.Messages():
			if !open {
				return nil
			}
			if member.Add(consumed(message), member.limit) {
				session.MarkMessage(message, "")
				session.Commit()
			}
		case <-session.Context().Done():
			return nil
		}
	}
}

func (member *member) Leave() error {
	member.stop()
	<-member.done
	return member.group.Close()
}
