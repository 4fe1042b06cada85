// franz-go fitted to the interop tests.
package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"tidelog/tests/interop/driver"
)

type franz struct{}

func main() {
	driver.Serve(franz{}, driver.Version("github.com/twmb/franz-go"))
}

var codecs = map[string]kgo.CompressionCodec{
	"none":   kgo.NoCompression(),
	"gzip":   kgo.GzipCompression(),
	"snappy": kgo.SnappyCompression(),
	"lz4":    kgo.Lz4Compression(),
	"zstd":   kgo.ZstdCompression(),
}

var acks = map[int]kgo.Acks{0: kgo.NoAck(), 1: kgo.LeaderAck(), -1: kgo.AllISRAcks()}

func (franz) Produce(request driver.Request) error {
	ctx, cancel := context.WithTimeout(context.Background(), driver.Deadline)
	defer cancel()
	options := []kgo.Opt{
		kgo.SeedBrokers(request.Bootstrap),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchCompression(codecs[request.Compression]),
		kgo.RequiredAcks(acks[request.Acks]),
		kgo.AllowAutoTopicCreation(),
	}
	if !request.Idempotent {
		options = append(options, kgo.DisableIdempotentWrite(), kgo.MaxProduceRequestsInflightPerBroker(1))
	}
	client, err := kgo.NewClient(options...)
	if err != nil {
		return err
	}
	defer client.Close()
	problems := make(chan error, len(request.Records))
	for _, record := range request.Records {
		sent := &kgo.Record{Topic: request.Topic, Partition: request.Partition, Key: record.Key, Value: record.Value}
		for _, header := range record.Headers {
			sent.Headers = append(sent.Headers, kgo.RecordHeader{Key: header.Name, Value: header.Value})
		}
		if record.TimestampMs != nil {
			sent.Timestamp = time.UnixMilli(*record.TimestampMs)
		}
		client.Produce(ctx, sent, func(_ *kgo.Record, err error) {
			if err != nil {
				problems <- err
			}
		})
		time.Sleep(time.Duration(request.PauseMs) * time.Millisecond)
	}
	if err := client.Flush(ctx); err != nil {
		return err
	}
	select {
	case err := <-problems:
		return err
	default:
		return nil
	}
}

func (franz) Consume(request driver.Request) ([]driver.Record, error) {
	ctx, cancel := context.WithTimeout(context.Background(), driver.Deadline)
	defer cancel()
	from := map[string]map[int32]kgo.Offset{
		request.Topic: {request.Partition: kgo.NewOffset().At(request.Offset)},
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(request.Bootstrap), kgo.ConsumePartitions(from))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	found := []driver.Record{}
	for len(found) < request.Count {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, err
		}
		fetches.EachRecord(func(record *kgo.Record) {
			if len(found) < request.Count {
				found = append(found, consumed(record))
			}
		})
	}
	return found, nil
}

func consumed(record *kgo.Record) driver.Record {
	timestamp := record.Timestamp.UnixMilli()
	found := driver.Record{
		Key: record.Key, Value: record.Value, TimestampMs: &timestamp,
		Partition: record.Partition, Offset: record.Offset,
	}
	for _, header := range record.Headers {
		found.Headers = append(found.Headers, driver.Header{Name: header.Key, Value: header.Value})
	}
	return found
}

func (franz) OffsetForTimestamp(request driver.Request) (*int64, error) {
	var found *int64
	err := administer(request, func(ctx context.Context, admin *kadm.Client) error {
		offsets, err := admin.ListOffsetsAfterMilli(ctx, request.TimestampMs, request.Topic)
		if err != nil {
			return err
		}
		offset, ok := offsets.Lookup(request.Topic, request.Partition)
		if !ok {
			return fmt.Errorf("no answer for %s-%d", request.Topic, request.Partition)
		}
		found = &offset.Offset // where there is none, kadm asks again, for the end
		return offset.Err
	})
	return found, err
}

func (franz) CreateTopic(request driver.Request) error {
	return administer(request, func(ctx context.Context, admin *kadm.Client) error {
		configs := map[string]*string{}
		for name, value := range request.Configs {
			configs[name] = &value
		}
		created, err := admin.CreateTopic(ctx, request.Partitions, 1, configs, request.Topic)
		return errors.Join(err, created.Err)
	})
}

func (franz) DeleteTopic(request driver.Request) error {
	return administer(request, func(ctx context.Context, admin *kadm.Client) error {
		deleted, err := admin.DeleteTopic(ctx, request.Topic)
		return errors.Join(err, deleted.Err)
	})
}

func (franz) Partitions(request driver.Request) ([]int32, error) {
	var found []int32
	err := administer(request, func(ctx context.Context, admin *kadm.Client) error {
		topics, err := admin.ListTopics(ctx, request.Topic)
		if err != nil {
			return err
		}
		topic := topics[request.Topic]
		if errors.Is(topic.Err, kerr.UnknownTopicOrPartition) {
			return nil
		}
		found = topic.Partitions.Numbers()
		return topic.Err
	})
	return found, err
}

func (franz) Committed(request driver.Request) (map[int32]int64, error) {
	found := map[int32]int64{}
	err := administer(request, func(ctx context.Context, admin *kadm.Client) error {
		offsets, err := admin.FetchOffsets(ctx, request.Group)
		offsets.Each(func(offset kadm.OffsetResponse) {
			if offset.Topic == request.Topic {
				found[offset.Partition] = offset.At
			}
		})
		return err
	})
	return found, err
}

func (franz) CreatePartitions(request driver.Request) error {
	return administer(request, func(ctx context.Context, admin *kadm.Client) error {
		created, err := admin.UpdatePartitions(ctx, int(request.Partitions), request.Topic)
		return errors.Join(err, created.Error())
	})
}

func (franz) Config(request driver.Request) (*string, error) {
	var found *string
	err := administer(request, func(ctx context.Context, admin *kadm.Client) error {
		configs, err := admin.DescribeTopicConfigs(ctx, request.Topic)
		if err != nil {
			return err
		}
		topic, err := configs.On(request.Topic, nil)
		for _, config := range topic.Configs {
			if config.Key == request.Name {
				found = config.Value
			}
		}
		return errors.Join(err, topic.Err)
	})
	return found, err
}

func (franz) SetConfig(request driver.Request) error {
	return administer(request, func(ctx context.Context, admin *kadm.Client) error {
		change := kadm.AlterConfig{Op: kadm.SetConfig, Name: request.Name, Value: &request.Value}
		altered, err := admin.AlterTopicConfigs(ctx, []kadm.AlterConfig{change}, request.Topic)
		if err != nil {
			return err
		}
		return altered[0].Err
	})
}

func (franz) DeleteRecords(request driver.Request) error {
	return administer(request, func(ctx context.Context, admin *kadm.Client) error {
		var before kadm.Offsets
		before.Add(kadm.Offset{Topic: request.Topic, Partition: request.Partition, At: request.Offset})
		deleted, err := admin.DeleteRecords(ctx, before)
		return errors.Join(err, deleted.Error())
	})
}

func (franz) Groups(request driver.Request) ([]string, error) {
	var found []string
	err := administer(request, func(ctx context.Context, admin *kadm.Client) error {
		groups, err := admin.ListGroups(ctx)
		found = groups.Groups()
		return err
	})
	return found, err
}

func (franz) DeleteGroup(request driver.Request) error {
	return administer(request, func(ctx context.Context, admin *kadm.Client) error {
		deleted, err := admin.DeleteGroup(ctx, request.Group)
		return errors.Join(err, deleted.Err)
	})
}

func administer(request driver.Request, ask func(context.Context, *kadm.Client) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), driver.Deadline)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(request.Bootstrap))
	if err != nil {
		return err
	}
	defer client.Close()
	return ask(ctx, kadm.NewClient(client))
}

type member struct {
	driver.Log
	client *kgo.Client
	stop   context.CancelFunc
	done   chan struct{}
}

var balancers = map[string]kgo.GroupBalancer{
	"range":              kgo.RangeBalancer(),
	"roundrobin":         kgo.RoundRobinBalancer(),
	"sticky":             kgo.StickyBalancer(),
	"cooperative-sticky": kgo.CooperativeStickyBalancer(),
}

func (franz) Join(request driver.Request) (driver.Member, error) {
	ctx, stop := context.WithCancel(context.Background())
	joined := &member{stop: stop, done: make(chan struct{})}
	options := []kgo.Opt{
		kgo.SeedBrokers(request.Bootstrap),
		kgo.ConsumerGroup(request.Group),
		kgo.ConsumeTopics(request.Topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.Balancers(balancers[request.Assignor]),
		kgo.HeartbeatInterval(300 * time.Millisecond),
		kgo.FetchMaxWait(200 * time.Millisecond), // leaving waits for a fetch
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(), // so that what was read is committed before it is given away
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, added map[string][]int32) {
			joined.Assign(added[request.Topic]...)
		}),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, lost map[string][]int32) {
			joined.Revoke(lost[request.Topic]...)
		}),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, lost map[string][]int32) {
			joined.Revoke(lost[request.Topic]...)
		}),
	}
	if request.InstanceID != "" {
		options = append(options, kgo.InstanceID(request.InstanceID))
	}
	client, err := kgo.NewClient(options...)
	if err != nil {
		return nil, err
	}
	joined.client = client
	go joined.run(ctx, request.Limit)
	return joined, nil
}

func (member *member) run(ctx context.Context, limit int) {
	defer close(member.done)
	for ctx.Err() == nil && !member.Full(limit) {
		fetches := member.client.PollFetches(ctx)
		if err := fetches.Err(); err != nil && ctx.Err() == nil {
			member.Fail(err)
		}
		var read []*kgo.Record
		fetches.EachRecord(func(record *kgo.Record) {
			if member.Add(consumed(record), limit) {
				read = append(read, record)
			}
		})
		if err := member.client.CommitRecords(context.Background(), read...); err != nil {
			member.Fail(err)
		}
		member.client.AllowRebalance()
	}
	<-ctx.Done()
}

func (member *member) Leave() error {
	member.stop()
	<-member.done
	member.client.Close() // a static member stays in the group
	return nil
}
